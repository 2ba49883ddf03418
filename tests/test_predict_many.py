"""predict.py for many pairs: predictions.json, tables of pairs, several processes."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import in_process
from PIL import Image
from pycocotools import mask as coco
from test_distributed import finish, torchrun

from data.pictures import PairOfFiles, read_pair
from data.prepare.pair_tables import read_requests
from evaluation.predictions import prediction_panel, record, write_prediction
from predictor import Pair, Prediction, Predictor
from utils.errors import InputError


@pytest.fixture(scope="module")
def pairs(scenes, tmp_path_factory):
    """A folder with three pairs of pictures, `0-visible.png`, `0-infrared.png` and so on."""
    folder = tmp_path_factory.mktemp("pairs")
    for number, row in enumerate(pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()[:3]):
        for kind in ("visible", "infrared"):
            (folder / f"{number}-{kind}.png").write_bytes(row[f"{kind}_image"])
    return folder


@pytest.fixture
def ask(trained, tmp_path):
    """Call predict.py within this process: what it says, its exit code and the content of predictions.json."""
    def call(*arguments):
        result = in_process("predict.py", "--ckpt", trained / "last.pth", "--out", tmp_path / "out", "--device", "cpu",
                            "--save", "mask", *arguments, ok=False)
        path = tmp_path / "out" / "predictions.json"
        found = json.loads(path.read_text())["predictions"] if path.is_file() else None
        return SimpleNamespace(code=result.returncode, said=result.stdout + result.stderr, found=found)
    return call


def table(folder, name: str, *lines: str):
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


def test_a_record_is_what_the_mask_says_and_coco_reads_it_back():
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:30] = mask[30, 7] = True
    probability = np.where(mask, np.float32(0.75), np.float32(0.25))
    probability[30, 7] = 1
    files = PairOfFiles("a", "v/a.png", "i/a.png")
    entry = json.loads(json.dumps(record(files, "a disc", Prediction(None, mask, probability), {"mask": "x/a.png"})))
    assert np.array_equal(coco.decode(entry.pop("segmentation")), mask)
    assert entry == {"name": "a", "visible": "v/a.png", "infrared": "i/a.png", "text": "a disc", "found": True,
                     "share": 251 / 2000, "box": [5, 10, 25, 21], "mean_probability": pytest.approx((187.5 + 1) / 251),
                     "files": {"mask": "a.png"}}
    nothing = record(files, "a disc", Prediction(None, ~mask & mask, probability), {})
    assert (nothing["found"], nothing["share"], nothing["box"], nothing["mean_probability"]) == (False, 0, None, None)
    assert not coco.decode(nothing["segmentation"]).any()


def test_pictures_hold_every_pixel_of_what_was_computed(tmp_path):
    numbers = np.random.default_rng(0)
    visible, infrared, fused = numbers.integers(0, 256, (3, 33, 47, 3), np.uint8)
    mask = numbers.random((33, 47)) < 0.3
    pair, prediction = Pair(visible, infrared, (), None), Prediction(fused, mask, mask.astype(np.float32))
    paths = write_prediction(pair, "the disc", prediction, str(tmp_path / "a"))
    saved = {kind: Image.open(path) for kind, path in paths.items()}
    assert {kind: picture.mode for kind, picture in saved.items()} == {
        "fused": "RGB", "mask": "L", "overlay": "RGB", "panel": "RGB"}
    red = np.where(mask[..., None], np.round(fused / 2 + [127.5, 0, 0]), fused)
    for kind, pixels in (("fused", fused), ("mask", mask * 255), ("overlay", red),
                         ("panel", prediction_panel(pair, "the disc", prediction))):
        assert np.array_equal(saved[kind], pixels), kind


def test_predictions_json_lists_what_was_written(ask, pairs, tmp_path):
    answer = ask("--visible", pairs / "0-visible.png", "--infrared", pairs / "0-infrared.png", "--text", "the disc",
                 "--text", "the red square")
    assert [entry["text"] for entry in answer.found] == ["the disc", "the red square"]
    for entry in answer.found:
        mask = np.asarray(Image.open(tmp_path / "out" / entry["files"]["mask"])) == 255
        assert np.array_equal(coco.decode(entry["segmentation"]), mask) and entry["found"] == mask.any()
        assert entry["visible"] == str(pairs / "0-visible.png")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_asks_each_pair_its_own_sentences_and_reads_a_pair_once(separator, ask, pairs, monkeypatch, tmp_path):
    read = []
    monkeypatch.setattr("pair_runner.read_pair", lambda *some: [read.append(some), read_pair(*some)][1])
    lines = ("text", "infrared", "visible", "name"), ("the disc", "0-infrared.png", "0-visible.png", ""), (
        "the square", "1-infrared.png", str(pairs / "1-visible.png"), "street"), (
        "the red one", "./0-infrared.png", "0-visible.png", "corner")
    answer = ask("--table", table(pairs, "pairs.csv", *(separator.join(line) for line in lines)))
    assert answer.code == 0, answer.said
    assert len(read) == 2
    assert [(entry["files"]["mask"], entry["text"]) for entry in answer.found] == [
        ("0-visible-the_disc-mask.png", "the disc"), ("corner-the_red_one-mask.png", "the red one"),
        ("street-the_square-mask.png", "the square")]
    assert [entry["name"] for entry in answer.found] == ["0-visible", "corner", "street"]
    assert "street, 'the square': " in answer.said


@pytest.mark.parametrize(("lines", "message"), [
    (["visible,infrared,text,caption", "a,b,c,d"], "columns that are not known: caption; it may have visible, infrared,"
                                                   " text, name"),
    (["visible,text", "a,b"], "has no column infrared; its first line is visible, text"),
    (["visible,infrared,text"], "no line below its header"),
    ([""], "has no column visible; its first line is empty"),
    (["visible,infrared,text", "0-visible.png,0-infrared.png,a", "0-visible.png,absent.png,a", "x.png,x.png,a"],
     "bad.csv, line 3: there is no infrared file '"),
    (["visible,infrared,text", "absent.png,x.png,a", "x.png,x.png,a"], "; likewise 1 other line"),
    (["visible,infrared,text", "0-visible.png,0-infrared.png, "], "line 2: text is empty"),
    (["visible,infrared,text", "0-visible.png,0-infrared.png,left, red"], "line 2: has 4 cells, the first line 3"),
    (["visible,infrared,text", '0-visible.png,0-infrared.png,"left'], "is not a table (")])
def test_a_table_that_does_not_do_is_refused_in_one_sentence(lines, message, pairs):
    with pytest.raises(InputError) as caught:
        read_requests(str(table(pairs, "bad.csv", *lines)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("flags", "message"), [
    (["--table", "README.md", "--text", "a"], "--table: it has the pictures and sentences; leave out --text"),
    (["--table", "absent.csv"], "--table: there is no 'absent.csv'"),
    (["--visible", "README.md"], "--infrared, --text: missing; give all of")])
def test_pictures_come_from_flags_or_from_a_table(flags, message, ask):
    answer = ask(*flags)
    assert answer.code == 2 and message in answer.said


def test_a_picture_that_cannot_be_written_is_a_failure_of_its_own_pair(ask, pairs, monkeypatch):
    """Although the next pair is being computed when it turns out."""
    def fail(pair, text, prediction, stem, *how):
        if "1-visible" in stem:
            raise InputError(f"{stem}: it cannot be written")
        return write_prediction(pair, text, prediction, stem, *how)

    monkeypatch.setattr("pair_runner.write_prediction", fail)
    answer = ask("--visible", pairs, "--infrared", pairs, "--text", "the disc")
    assert answer.code == 1 and "1 of 3 pairs could not be used" in answer.said
    assert [entry["name"] for entry in answer.found] == [f"{n}-visible" for n in (0, 2)]


@pytest.mark.parametrize("at", ["encode_pair", "predict"])
def test_what_was_found_before_an_interruption_is_kept(at, ask, pairs, monkeypatch, tmp_path):
    calls, whole = [], getattr(Predictor, at)

    def interrupted(self, *given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(Predictor, at, interrupted)
    answer = ask("--visible", pairs, "--infrared", pairs, "--text", "the disc")
    assert answer.code == 130 and answer.said.count("'the disc': ") == 2
    assert [entry["name"] for entry in answer.found] == ["0-visible", "1-visible"]
    assert len(list((tmp_path / "out").glob("*-mask.png"))) == 2


def test_of_many_images_without_a_partner_the_first_ten_are_named(ask, pairs, tmp_path):
    for folder in ("visible", "infrared"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes((pairs / f"0-{folder}.png").read_bytes())
    for number in range(12):
        (tmp_path / "visible" / f"more_{number:02}.png").write_bytes(b"")
    said = ask("--visible", tmp_path / "visible", "--infrared", tmp_path / "infrared", "--text", "the disc").said
    assert "no partner for 12 of the images" in said and "more_09.png … and 2 more\n" in said
    assert "more_10.png" not in said


def test_several_processes_share_the_pairs_and_one_writes_the_list(trained, pairs, tmp_path):
    path = table(pairs, "several.csv", "visible,infrared,text", *(
        f"{number}-visible.png,{number}-infrared.png,the disc" for number in range(3)))
    said = finish(torchrun(2, "predict.py", "--ckpt", trained / "last.pth", "--table", path, "--out", tmp_path,
                           "--device", "cpu", "--save", "mask"))
    assert sorted(re.findall(r"^(\d-visible), 'the disc': ", said, re.MULTILINE)) == [
        "0-visible", "1-visible", "2-visible"]
    assert said.count("Swin micro") == said.count("3 predictions") == 1
    found = json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    assert [entry["name"] for entry in found] == ["0-visible", "1-visible", "2-visible"]
    masks = {entry["files"]["mask"] for entry in found}
    assert masks | {"predictions.json"} == {path.name for path in tmp_path.iterdir()}
