"""The page of app.py: what stands behind it, and the page in a real Chromium where one is installed."""
import contextlib
import importlib.util
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, in_process
from PIL import Image
from pycocotools import mask as coco

from data.pictures import read_picture
from page.answers import LONGEST_TEXT, MOST_SENTENCES, SharedPredictor
from page.examples import write_examples
from page.recent import Recent
from page.results import at_threshold, describe_all, draw_views, write_zip
from page.uploads import PREVIEW, check, uploaded_file
from predictor import Predictor
from utils.errors import InputError

LEFT, RIGHT = "the red disc on the left", "the red disc on the right"
TWO = f"{LEFT}\n\n  {RIGHT}\n"
MAX_PIXELS = 1_000_000

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None,
                                  reason="Gradio is not installed (requirements-app.txt)")


@pytest.fixture(scope="module")
def predictors(trained):
    first = Predictor.from_checkpoint(trained / "last.pth", "cpu")
    return {size: Predictor(first.model, first.tokenizer, first.img_size, first.device, fuse_size=size)
            for size in ("native", "network")}


@pytest.fixture
def shared(predictors):
    return SharedPredictor(predictors, MAX_PIXELS, 10**9)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    """Files of a visible and an infrared picture of 288×288 px."""
    return tuple(write_examples(str(tmp_path_factory.mktemp("pair") / "examples"), 64)[0][:2])


@pytest.fixture(scope="module")
def huge(tmp_path_factory) -> str:
    """A picture of 200 megapixels, in a small file."""
    path = tmp_path_factory.mktemp("huge") / "huge.png"
    Image.new("1", (20_000, 10_000)).save(path, compress_level=1)
    return str(path)


def thermal(path) -> str:
    """A picture as thermal cameras store it: 16 bits, of which few values are used."""
    values = np.linspace(7000, 7900, 60 * 80).reshape(60, 80).astype(np.uint16)
    Image.fromarray(values).save(path)
    return str(path)


def refusal(shared, *files, **asked):
    """The sentence with which a question is refused."""
    with pytest.raises(InputError) as refused:
        shared.ask(*files, **{"text": LEFT, "size": "native"} | asked)
    return str(refused.value)


def test_each_line_is_answered_as_the_predictor_answers_it_at_either_size(shared, predictors, pair):
    pictures = [read_picture(path).pixels for path in pair]
    for size in ("network", "native", "network"):
        answered = shared.recall(shared.ask(*pair, TWO, size))
        assert [answer.text for answer in answered.answers] == [LEFT, RIGHT]
        for answer in answered.answers:
            for found, expected in zip(answer.prediction, predictors[size](*pictures, answer.text), strict=True):
                assert np.array_equal(found, expected)


def test_a_second_sentence_on_the_same_pair_does_not_encode_it_again(shared, predictors, pair, tmp_path):
    first = shared.recall(shared.ask(*pair, LEFT, "native"))
    copies = [shutil.copy(path, tmp_path / f"copy_{Path(path).name}") for path in pair]
    with mock.patch.object(predictors["native"], "encode_pair", side_effect=AssertionError("encoded again")):
        second = shared.recall(shared.ask(*copies, RIGHT, "native"))
    assert (first.reused, second.reused) == (False, True)
    assert "Pair read and encoded" in describe_all(first, 0, 0.5)
    words = describe_all(second, 0, 0.5)
    assert "Pair reused" in words and re.search(rf"<b>{RIGHT}</b>: .* <span class='time'>\d\.\d\d s</span>", words)


def test_another_threshold_changes_mask_and_words_without_the_model(shared, predictors, pair):
    answered = shared.recall(shared.ask(*pair, LEFT, "native"))
    prediction = answered.answers[0].prediction
    assert np.array_equal(at_threshold(prediction, 0.5).mask, prediction.mask)
    low, high = np.quantile(prediction.probability, [0.2, 0.9])
    with mock.patch.object(predictors["native"].model, "answer", side_effect=AssertionError("the model ran")):
        areas = [(draw_views(answered, 0, threshold).mask > 0).mean() for threshold in (low, high)]
        words = [describe_all(answered, 0, threshold) for threshold in (low, high, 1.0)]
    assert areas == [np.mean(prediction.probability > threshold) for threshold in (low, high)]
    assert areas[0] > areas[1] and words[0] != words[1] and "nothing found" in words[2]


def test_large_pictures_are_shown_smaller_and_handed_out_whole(shared, tmp_path):
    for name in ("v.png", "i.png"):
        Image.effect_noise((2000, 64), 60).save(tmp_path / name)
    answered = shared.recall(shared.ask(str(tmp_path / "v.png"), str(tmp_path / "i.png"), LEFT, "network"))
    assert {view.shape[:2] for view in draw_views(answered, 0, 0.5)} == {(51, 1600)}
    with zipfile.ZipFile(write_zip(answered, 0.5, str(tmp_path / "out"), "c.pth")) as archive:
        fused = Image.open(io.BytesIO(archive.read("v-the_red_disc_on_the_left-fused.png")))
    assert fused.size == (2000, 64)


def test_the_download_has_all_pictures_and_the_masks_of_the_threshold(shared, pair, tmp_path):
    answered = shared.recall(shared.ask(*pair, TWO, "native"))
    threshold = float(np.median(answered.answers[0].prediction.probability))
    with zipfile.ZipFile(write_zip(answered, threshold, str(tmp_path / "out"), "c.pth")) as archive:
        names = set(archive.namelist())
        records = json.loads(archive.read("predictions.json"))
    stems = ["scene_1_visible-the_red_disc_on_the_left", "scene_1_visible-the_red_disc_on_the_right"]
    assert names == {"predictions.json"} | {f"{stem}-{kind}.png" for stem in stems for kind in (
        "fused", "mask", "overlay", "panel", "probability")}
    assert records["threshold"] == threshold
    entry = records["predictions"][0]
    assert (entry["visible"], entry["infrared"]) == ("scene_1_visible.png", "scene_1_infrared.png")
    assert np.array_equal(coco.decode(entry["segmentation"]),
                          answered.answers[0].prediction.probability > threshold)
    assert set(entry["files"].values()) <= names
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".zip"]


@pytest.mark.parametrize(("text", "part"), [
    ("", "The sentence is empty"), (" \n\t", "The sentence is empty"), (None, "The sentence is empty"),
    ("\n".join(map(str, range(MOST_SENTENCES + 1))), f"at most {MOST_SENTENCES}"),
    ("x" * (LONGEST_TEXT + 1), f"more than {LONGEST_TEXT} characters"), ("a \ud800", "no characters")])
def test_sentences_that_cannot_be_answered_are_refused_in_a_sentence(shared, pair, text, part):
    assert part in refusal(shared, *pair, text=text)


def test_pictures_that_cannot_be_used_are_refused_in_a_sentence_without_folders(shared, pair, huge, tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    assert refusal(shared, pair[0], huge).startswith("huge.png cannot be decoded as an image: it has more than")
    assert refusal(shared, pair[0], str(notes)).startswith("notes.png cannot be decoded as an image")
    assert "visible picture is missing" in refusal(shared, None, pair[1])
    assert "no longer kept" in refusal(shared, pair[0], str(tmp_path / "deleted.png"))
    assert "native or network" in refusal(shared, *pair, size="1000000")


def test_what_nobody_expected_is_a_sentence_too(shared, predictors, pair, caplog):
    with mock.patch.object(predictors["native"], "predict", side_effect=RuntimeError("out of memory\nTraceback")):
        assert refusal(shared, *pair) == "This cannot be processed (RuntimeError: out of memory)."
    assert "Traceback" in caplog.text  # for who runs the server
    assert shared.recall(shared.ask(*pair, LEFT, "native"))  # the model is free again


def test_what_the_predictor_says_is_shown(shared, pair):
    text = f"{'the red disc ' * 10}\nthe 车 disc\nthe <b>red</b> disc"
    words = describe_all(shared.recall(shared.ask(pair[0], pair[0], text, "native")), 0, 0.5)
    assert "only its first" in words and "not in the vocabulary of BERT" in words and "the same picture" in words
    assert "<b>red" not in words


def test_memory_is_bounded_and_forgotten_results_are_said_so(predictors, pair):
    forgotten = []
    shared = SharedPredictor(predictors, MAX_PIXELS, 0, forgotten.append)
    first, second = (shared.ask(*pair, text, "native") for text in (LEFT, RIGHT))
    assert shared.recall(second) and forgotten == [first]
    with pytest.raises(InputError, match="no longer kept in memory"):
        shared.recall(first)


def test_what_was_used_longest_ago_is_forgotten_first():
    recent = Recent(250)
    arrays = {name: np.zeros(100, np.uint8) for name in "abc"}
    recent.put("a", (arrays["a"],))
    recent.put("b", [arrays["b"]])
    assert recent.get("a")
    recent.put("c", arrays["c"])
    assert [recent.get(name) is not None for name in "abc"] == [True, False, True]


@pytest.mark.parametrize("name", ["thermal.tiff", "thermal.png"])
def test_16_bits_are_read_as_predict_reads_them_and_shown_in_8(shared, pair, tmp_path, name):
    path = thermal(tmp_path / name)
    preview, note = check(path, MAX_PIXELS)
    with Image.open(preview) as shown:
        assert (shown.format, shown.mode, shown.getextrema()[0]) == ("PNG", "RGB", (0, 255))
    assert "uint16 values from 7000 to 7900" in note
    assert uploaded_file({"path": preview}, str(tmp_path)) == path
    answered = shared.recall(shared.ask(pair[0], path, LEFT, "native"))
    small = np.asarray(Image.fromarray(read_picture(path).pixels).resize((288, 288), Image.Resampling.BILINEAR))
    assert np.array_equal(answered.pair.infrared, small) and note in describe_all(answered, 0, 0.5)
    assert check(pair[0], MAX_PIXELS) == (None, "")


def test_a_page_reads_no_other_files_of_the_machine(tmp_path):
    (tmp_path / "uploads").mkdir()
    for name in ("secret.png", "uploads/given.png", "uploads_of_another.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    uploads = str(tmp_path / "uploads")
    assert uploaded_file({"path": f"{uploads}/given.png"}, uploads) == f"{uploads}/given.png"
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (f"{tmp_path}/secret.png", f"{uploads}/../secret.png", f"{uploads}/link.png", uploads, None, 3, "\0",
                 f"{tmp_path}/uploads_of_another.png", "http://127.0.0.1/a.png"):
        with pytest.raises(InputError, match="dropping, pasting or choosing"):
            uploaded_file({"path": path}, uploads)
    assert uploaded_file(None, uploads) is None


def test_a_missing_gradio_and_wrong_flags_are_one_sentence(trained):
    def page(*flags, gradio="installed"):
        found = importlib.util.find_spec
        with (mock.patch("importlib.util.find_spec", lambda name, *_: gradio if name == "gradio" else found(name, *_)),
              mock.patch("page.server.temporary_folder", side_effect=AssertionError("the page starts"))):
            result = in_process("app.py", "--ckpt", trained / "last.pth", *flags, ok=False)
        assert result.stderr.count("\n") == 1
        return result.returncode, result.stderr

    code, said = page(gradio=None)
    assert code == 1 and "pip install -r requirements-app.txt" in said
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, said = page("--port", other.getsockname()[1])
    assert code == 1 and said.startswith("error: --port: 127.0.0.1:") and "in use" in said
    code, said = page("--host", "203.0.113.1")
    assert code == 1 and said.startswith("error: --host: '203.0.113.1' is no address of this machine")
    assert page("--port", "70000")[0] == 2
    code, said = page("--ckpt", "absent.pth")
    assert code == 2 and "--ckpt: there is no 'absent.pth'" in said


@contextlib.contextmanager
def page_of(checkpoint: Path, *flags):
    """app.py in a process of its own, and its address."""
    command = [sys.executable, "app.py", "--ckpt", str(checkpoint), "--device", "cpu", "--port", "0", *map(str, flags)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = process.stdout.readline()
                assert line, said + process.stderr.read()
                said += line
            yield process, found[0]
        finally:
            process.terminate()


def upload(url: str, name: str, content: bytes) -> list[str]:
    """Send a file as the page does; the paths under which the server has it."""
    boundary = "of-the-parts"
    body = (f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n").encode() + content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{url}/gradio_api/upload", body, {
        "Content-Type": f"multipart/form-data; boundary={boundary}"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def join_queue(url: str, config: dict, times: int) -> list[tuple[int, str]]:
    """Press the page's button many times at once: status code and complaint of each."""
    [button] = [entry for entry in config["dependencies"] if len(entry["inputs"]) == 4]
    body = json.dumps({"data": [None, None, LEFT, "native"], "fn_index": button["id"], "session_hash": "visitor"})

    def press(_) -> tuple[int, str]:
        request = urllib.request.Request(f"{url}/gradio_api/queue/join", body.encode(), {
            "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, ""
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)["detail"]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(press, range(times)))


@needs_gradio
def test_the_server_keeps_its_limits_and_leaves_nothing_behind(trained):
    with page_of(trained / "last.pth", "--max_mb", 1, "--max_waiting", 1) as (process, url):
        with urllib.request.urlopen(url) as response:
            assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        [path] = upload(url, "small.png", b"0" * 1000)
        assert Path(path).is_file()
        with pytest.raises(urllib.error.HTTPError) as refused:
            upload(url, "large.png", b"0" * 1_100_000)
        assert refused.value.code == 413
        with urllib.request.urlopen(f"{url}/config") as response:
            config = json.load(response)
        assert not config["analytics_enabled"]
        said = join_queue(url, config, 40)
        assert any(answer == (503, "Queue is full. Max size is 1 and size is 1.") for answer in said)
        assert all(code in (200, 503) for code, _ in said)
        folder = next(parent for parent in Path(path).parents if parent.name.startswith("ris-fusion-page-"))
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)
        assert process.returncode == 143 and "Traceback" not in "".join(rest)
        assert not folder.exists()


@pytest.fixture(scope="module")
def page(trained):
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    pytest.importorskip("selenium", reason="selenium is not installed (requirements-dev.txt)")
    if find_browser() is None:
        pytest.skip("there is no Chromium with its driver (Debian's packages chromium and chromium-driver)")
    with page_of(trained / "last.pth", "--max_pixels", MAX_PIXELS) as (_, url):
        yield url


def find_browser() -> tuple[str, str] | None:
    browsers = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    driver = shutil.which("chromedriver")
    return next(((browser, driver) for browser in browsers if browser and driver), None)


class Browser:
    """A visitor with a Chromium of its own."""

    def __init__(self, url: str, profile: Path, width: int):
        from selenium import webdriver

        browser, driver = find_browser()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     "disable-dev-shm-usage", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        self.driver.get(url)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def until(self, condition):
        """What `condition()` gives, once it is true."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.1, [StaleElementReferenceException]).until(lambda _: condition())

    def one(self, selector: str):
        return self.until(lambda: self.all(selector))[0]

    def shown(self, selector: str, text: str) -> str:
        """The text of an element, once `text` is part of it."""
        return self.until(lambda: any(text in element.text for element in self.all(selector))
                          and self.one(selector).text)

    def give(self, field: str, path) -> None:
        self.one(f"#{field} input[type=file]").send_keys(str(path))

    def ask(self, text: str) -> None:
        box = self.one("#text textarea")
        box.clear()
        box.send_keys(text)
        self.one("#ask").click()

    def hosts(self) -> set[str]:
        """The hosts that the page has asked for anything."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [message["params"]["request"]["url"] for message in messages
                if message["method"] == "Network.requestWillBeSent"]
        return {urllib.request.urlparse(url).hostname for url in urls if re.match("(http|ws)s?:", url)}


@pytest.fixture
def visit(page, tmp_path):
    """Open the page in a window of a width, in pixels."""
    browsers = []

    def open_page(width: int) -> Browser:
        browsers.append(Browser(page, tmp_path / f"profile_{len(browsers)}", width))
        return browsers[-1]

    yield open_page
    for browser in browsers:
        browser.driver.quit()


def test_in_a_browser_two_pictures_and_a_sentence_give_a_result_and_the_next_is_faster(visit, pair):
    browser = visit(1280)
    browser.give("visible", pair[0])
    browser.give("infrared", pair[1])
    browser.until(lambda: len(browser.all("#pictures img")) == 2)
    browser.ask(LEFT)
    assert LEFT in browser.shown("#words", "Pair read and encoded")
    browser.shown("#download", "Download all results")
    assert len(browser.all("#fused img")) >= 2
    assert all(browser.one(f"#{name} img").get_attribute("src") for name in ("outline", "mask", "heat"))
    browser.ask(RIGHT)
    assert RIGHT in browser.shown("#words", "Pair reused")
    number = browser.one("#threshold input[type=number]")
    number.clear()
    number.send_keys("1\t")
    browser.shown("#words", "nothing found")
    browser.ask(" ")
    browser.shown("#message", "The sentence is empty")
    assert "Results appear here" in browser.shown("#words", "Results appear here")  # no earlier ones beside the reason
    assert browser.hosts() == {"127.0.0.1"}


def test_in_a_browser_mistakes_are_sentences_and_a_phone_shows_the_whole_width(visit, pair, huge, tmp_path):
    browser = visit(390)
    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    browser.give("visible", notes)
    browser.shown("#message", "notes.png cannot be decoded as an image")
    browser.give("visible", huge)
    browser.shown("#message", f"huge.png cannot be decoded as an image: it has more than {MAX_PIXELS} pixels")
    browser.give("infrared", thermal(tmp_path / "thermal.tiff"))
    browser.shown("#message", "thermal.tiff: uint16 values")
    assert browser.one("#infrared img").get_attribute("src").endswith(PREVIEW)
    browser.give("visible", pair[0])
    browser.one("#visible img")
    browser.one("#ask").click()
    browser.shown("#message", "The sentence is empty")
    browser.all("#examples tbody tr")[0].click()
    browser.until(lambda: "scene_1" in browser.one("#visible img").get_attribute("src"))
    browser.one("#ask").click()
    browser.shown("#download", "Download all results")
    assert browser.one("#message").text == ""
    assert len(browser.all("#chosen label")) >= 2
    assert browser.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.hosts() == {"127.0.0.1"}
