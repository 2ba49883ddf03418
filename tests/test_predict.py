"""predict.py and Predictor, as someone uses them who has a thermal camera and a few pictures."""
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, in_process, script
from PIL import Image

from bert import Tokenizer
from data import MMRISDataset, collate
from data.pictures import read_pair, read_picture
from data.prepare.pair_tables import Request
from evaluation.predictions import describe, parts, prediction_panel
from models import INPUTS, Output
from pair_runner import result_names
from predictor import KEPT_SENTENCES, Prediction, Predictor
from utils.draw import panel, panel_cell, resize, to_image
from utils.flags import picture_kinds
from utils.streams import TolerantStream

LEFT, RIGHT = "the red disc on the left", "the red disc on the right"


@pytest.fixture(scope="module")
def pictures(scenes, tmp_path_factory):
    """A visible and an infrared picture of 90×60 px in memory and on disk, and the row they come from."""
    folder = tmp_path_factory.mktemp("pictures")
    row = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()[0]
    images = {kind: Image.open(io.BytesIO(row[f"{kind}_image"])).resize((90, 60)) for kind in ("visible", "infrared")}
    for kind, image in images.items():
        (folder / kind).mkdir()
        image.save(folder / kind / "scene.png")
    return SimpleNamespace(folder=folder, **{kind: np.array(image) for kind, image in images.items()})


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_checkpoint(str(trained / "last.pth"), device="cpu")


@pytest.fixture
def ask(trained, tmp_path):
    """Call predict.py within this process: what it says and its exit code."""
    def call(visible, infrared, *more, text=LEFT):
        result = in_process("predict.py", "--ckpt", trained / "last.pth", "--visible", visible, "--infrared", infrared,
                            "--text", text, "--out", tmp_path / "out", "--device", "cpu", *more, ok=False)
        return SimpleNamespace(code=result.returncode, said=result.stdout + result.stderr)
    return call


def written(folder) -> set[str]:
    """The pictures and folders in a folder."""
    return {path.name for path in folder.iterdir() if path.suffix != ".json"}


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_pair_and_two_sentences_give_four_pictures_each(trained, pictures, predictor, tmp_path):
    process = script(
        "predict.py", "--ckpt", trained / "last.pth", "--visible", pictures.folder / "visible" / "scene.png",
        "--infrared", pictures.folder / "infrared" / "scene.png", "--text", LEFT, "--text", RIGHT, "--out", tmp_path)
    names = {LEFT: "scene-the_red_disc_on_the_left", RIGHT: "scene-the_red_disc_on_the_right"}
    kinds = ("fused", "mask", "overlay", "panel")
    assert written(tmp_path) == {f"{name}-{kind}.png" for name in names.values() for kind in kinds}
    assert all(str(path) in process.stdout for path in tmp_path.iterdir())
    for text, name in names.items():
        fused, mask, _ = predictor(pictures.visible, pictures.infrared, text)
        images = {kind: np.asarray(Image.open(tmp_path / f"{name}-{kind}.png")) for kind in kinds}
        assert np.array_equal(images["fused"], fused)
        assert np.array_equal(images["mask"], mask * np.uint8(255))
        assert images["overlay"].shape == (60, 90, 3)
        assert f"scene, '{text}': {describe(mask)}" in process.stdout


def test_the_share_and_the_box_are_those_of_the_mask():
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:30] = True
    assert describe(mask) == "12.50 % of the image, box x 5 to 29, y 10 to 19 (25×10 px)"
    assert describe(~mask).endswith("box x 0 to 49, y 0 to 39 (50×40 px)")
    assert describe(np.zeros((4, 5), bool)) == "nothing found"


def test_every_part_of_the_object_has_a_box_but_specks_have_none():
    mask = np.zeros((100, 200), bool)
    mask[10:20, 5:30] = True     # 250 px
    mask[20:30, 30:50] = True    # 200 px, touches the first at a corner
    mask[60:90, 100:130] = True  # 900 px
    mask[0, 199] = mask[99, 0] = True
    assert describe(mask).splitlines() == [
        "6.76 % of the image, box x 0 to 199, y 0 to 99 (200×100 px)",
        "  part 1: 4.50 %, box x 100 to 129, y 60 to 89 (30×30 px)",
        "  part 2: 2.25 %, box x 5 to 49, y 10 to 29 (45×20 px)",
        "  without 2 specks, each below 1 % of the predicted pixels"]
    whole, large, specks = parts(mask)
    assert whole.pixels == mask.sum() and [part.pixels for part in large] == [900, 450] and specks == 2
    several = np.zeros((10, 60), bool)
    several[:, ::4] = True
    assert describe(several).splitlines()[-1] == "  and 5 smaller parts" and len(describe(several).splitlines()) == 12
    several[:, 40:] = False
    assert describe(several).splitlines()[-1].startswith("  part 10: ")


def test_a_part_of_one_percent_is_no_speck_and_a_speck_beside_a_single_part_is_said():
    mask = np.zeros((30, 20), bool)
    mask[:9, :11] = mask[9:18, :11] = True  # 198 px
    mask[25, 3:5] = True
    assert [part.pixels for part in parts(mask)[1]] == [198, 2]
    mask[25, 4] = False
    assert describe(mask).splitlines()[1:] == [
        "  part 1: 33.00 %, box x 0 to 10, y 0 to 17 (11×18 px)",
        "  without 1 speck, each below 1 % of the predicted pixels"]


def test_a_prediction_is_what_an_evaluation_finds_in_the_same_row(predictor, scenes, tiny_bert):
    parquet = scenes / "mm_ris_test.parquet"
    batch = collate([MMRISDataset(str(parquet), Tokenizer(tiny_bert), 64)[2]])
    with torch.inference_mode():
        output = predictor.model(*(batch[name] for name in INPUTS))
    row = pq.read_table(parquet).to_pylist()[2]
    visible, infrared = (Image.open(io.BytesIO(row[f"{kind}_image"])) for kind in ("visible", "infrared"))
    found = predictor(visible, infrared, row["question"])
    assert np.abs(found.fused.astype(int) - to_image(output.fused[0])).max() <= 1
    assert np.array_equal(found.mask, output.logits[0].argmax(0).numpy() == 1)


def test_a_prediction_has_the_documented_shapes_and_ranges(predictor, pictures):
    found = predictor(pictures.visible, pictures.infrared, LEFT)
    assert found.fused.shape == (60, 90, 3) and found.fused.dtype == np.uint8
    assert found.mask.shape == (60, 90) and found.mask.dtype == bool
    assert found.probability.shape == (60, 90) and found.probability.dtype == np.float32
    assert 0 <= found.probability.min() < found.probability.max() <= 1
    assert np.array_equal(found.mask, found.probability > 0.5)


def test_further_sentences_do_not_encode_the_images_again(predictor, pictures):
    passes = []
    hook = predictor.model.model.fuser.net.y_inc.register_forward_hook(lambda *_: passes.append(1))
    pair = predictor.encode_pair(pictures.visible, pictures.infrared)
    found = [predictor.predict(pair, text) for text in (LEFT, RIGHT, LEFT)]
    hook.remove()
    assert len(passes) == 2  # at img_size and at the picture's own size
    assert same(found[0], found[2]) and not same(found[0], found[1])
    assert same(found[1], predictor(pictures.visible, pictures.infrared, RIGHT))


@pytest.mark.parametrize("flip", [False, True])
def test_a_sentence_is_encoded_once_for_all_pairs(flip, trained, pictures):
    predictor, passes = Predictor.from_checkpoint(trained / "last.pth", "cpu", flip=flip), []
    first = predictor(pictures.visible, pictures.infrared, LEFT)
    predictor.model.model.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    assert same(first, predictor(pictures.visible, pictures.infrared, LEFT)) and not passes
    other = predictor(pictures.visible, pictures.infrared, RIGHT)
    assert len(passes) == 1 + flip and not same(first, other)
    for number in range(KEPT_SENTENCES):
        predictor(pictures.visible, pictures.infrared, " ".join(["left"] * (number + 1)))
    passes.clear()
    assert same(other, predictor(pictures.visible, pictures.infrared, RIGHT)) and len(passes) == 1 + flip


@pytest.mark.parametrize("convert", [
    Image.fromarray, lambda rgb: rgb / 255, lambda rgb: (rgb / 255).astype(np.float32),
    lambda rgb: rgb.astype(np.int64), lambda rgb: np.dstack([rgb, rgb[..., :1]]),
    lambda rgb: np.flip(np.flip(rgb, 1).copy(), 1), lambda rgb: Image.fromarray(rgb).convert("RGBA")])
def test_the_same_picture_in_another_form_gives_the_same_prediction(convert, predictor, pictures):
    found = predictor(convert(pictures.visible), pictures.infrared, LEFT)
    assert same(found, predictor(pictures.visible, pictures.infrared, LEFT))


def test_grey_pictures_serve_as_visible_ones(predictor, pictures):
    grey = np.array(Image.fromarray(pictures.visible).convert("L"))
    expected = predictor(np.repeat(grey[..., None], 3, 2), pictures.infrared, LEFT)
    assert same(predictor(grey, pictures.infrared, LEFT), expected)
    assert same(predictor(grey[..., None], pictures.infrared, LEFT), expected)


def test_thermal_counts_are_scaled_whatever_their_range_and_that_is_said(ask, predictor, pictures, tmp_path):
    warm = pictures.infrared.astype(np.uint16) * 8 + 7300
    warm[0, 0] = 65535  # a dead pixel
    Image.fromarray(warm).save(tmp_path / "warm.tiff")
    answer = ask(pictures.folder / "visible" / "scene.png", tmp_path / "warm.tiff")
    assert "warm.tiff: uint16 values from" in answer.said and "(percentile 99) became 255" in answer.said
    as_counts, as_kelvin = (predictor.encode_pair(pictures.visible, infrared).infrared[..., 0].astype(int)
                            for infrared in (warm, warm * 0.04 + 10.5))
    assert np.abs(as_counts - as_kelvin).max() <= 1
    low, high = np.percentile(pictures.infrared, (1, 99))
    expected = ((pictures.infrared - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(as_counts - expected)[1:].max() < 4


def test_an_infrared_image_of_another_size_is_fitted_to_the_visible_one_and_that_is_said(ask, pictures, tmp_path):
    Image.fromarray(pictures.infrared).resize((45, 30)).save(tmp_path / "small.png")
    answer = ask(pictures.folder / "visible" / "scene.png", tmp_path / "small.png")
    assert "infrared: resampled from 45×30 px to the visible image's 90×60" in answer.said
    assert "proportions" not in answer.said
    assert {Image.open(path).size for path in (tmp_path / "out").glob("*-mask.png")} == {(90, 60)}
    Image.fromarray(pictures.infrared).resize((30, 45)).save(tmp_path / "small.png")
    assert "its proportions are not the visible image's" in ask(
        pictures.folder / "visible" / "scene.png", tmp_path / "small.png").said


@pytest.mark.parametrize(("orientation", "stored"), [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)])
def test_a_picture_turned_by_its_exif_note_is_read_upright(orientation, stored, predictor, pictures, tmp_path):
    turned = Image.fromarray(pictures.visible).transpose(stored)
    turned.getexif()[0x0112] = orientation
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    assert np.array_equal(read_picture(str(tmp_path / "turned.png")).pixels, pictures.visible)
    found = predictor(Image.open(tmp_path / "turned.png"), pictures.infrared, LEFT)
    assert same(found, predictor(pictures.visible, pictures.infrared, LEFT))


@pytest.mark.parametrize("size", [(300, 50), (20, 180), (1, 1)])
def test_any_aspect_ratio_gives_pictures_of_its_own_size(size, predictor, pictures):
    visible = resize(pictures.visible, size)
    found = predictor(visible, pictures.infrared, LEFT)
    assert found.fused.shape[:2] == found.mask.shape == found.probability.shape == size[::-1]


@pytest.mark.parametrize("size", [(90, 60), (300, 50), (20, 180), (1, 1)])
def test_a_panel_shows_every_picture_whole(size):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    page = panel("a long sentence " * 9, {str(number): np.full((*size[::-1], 3), colour, np.uint8)
                                          for number, colour in enumerate(colours)})
    assert [int((page == colour).all(2).sum()) for colour in colours] == 4 * [size[0] * size[1]]


def test_folders_are_paired_by_name_and_bad_or_lonely_files_left_out_and_named(ask, pictures, tmp_path):
    for kind in ("visible", "infrared"):
        (tmp_path / kind).mkdir()
    image = Image.fromarray(pictures.visible)
    for name in "ac":
        image.save(tmp_path / "visible" / f"{name}.JPG")
        image.convert("L").save(tmp_path / "infrared" / f"{name}.png")
    (tmp_path / "visible" / "bad.png").write_text("no image")
    for path in ("infrared/bad.png", "visible/dawn.png", "infrared/dusk.png"):
        image.save(tmp_path / path)
    (tmp_path / "visible" / "notes.txt").write_text("no image, and not said to be one")
    answer = ask(tmp_path / "visible", tmp_path / "infrared")
    assert answer.code == 1
    assert f"{tmp_path}/visible/bad.png cannot be decoded as an image" in answer.said
    assert "1 of 3 pairs could not be used" in answer.said
    assert "no partner for 2 of the images" in answer.said
    assert "dawn.png" in answer.said and "dusk.png" in answer.said and "notes.txt" not in answer.said
    assert sorted(name.split("-")[0] for name in written(tmp_path / "out")) == 4 * ["a"] + 4 * ["c"]


@pytest.mark.parametrize(("texts", "expected"), [
    (["the red car", "The red-car"], ["a-the_red_car_1", "a-The_red_car_2"]),
    (["../../etc", "das große Auto", "红色的汽车", "?"], ["a-etc", "a-das_große_Auto", "a-红色的汽车", "a-text"]),
    (["x" * 99], ["a-" + "x" * 60])])
def test_every_sentence_gets_a_safe_name_of_its_own(texts, expected):
    assert result_names([Request(None, texts, ["a"] * len(texts))]) == [expected]


def test_sentences_that_the_model_cannot_read_whole_are_pointed_out(ask, pictures):
    pair = pictures.folder / "visible" / "scene.png", pictures.folder / "infrared" / "scene.png"
    assert "no word of '红色的汽车' is in the vocabulary" in ask(*pair, text="红色的汽车").said
    assert "read as unknown: 汽车, ß\n" in ask(*pair, text="the red 汽车, “✓ and ß 汽车").said
    assert "only its first 19 word pieces are read" in ask(*pair, text="red " * 30).said
    said = ask(*pair).said
    assert "vocabulary of BERT" not in said and "word pieces" not in said


@pytest.mark.parametrize(("flags", "expected"), [
    (["--save", "mask"], {"mask.png"}), (["--save", "panel, fused"], {"fused.png", "panel.png"}),
    (["--format", "jpg"], {"fused.jpg", "mask.png", "overlay.jpg", "panel.jpg"})])
def test_only_the_pictures_that_are_wanted_are_written(flags, expected, ask, predictor, pictures, tmp_path):
    answer = ask(pictures.folder / "visible" / "scene.png", pictures.folder / "infrared" / "scene.png", *flags)
    assert answer.code == 0
    assert {name.rsplit("-", 1)[1] for name in written(tmp_path / "out")} == expected
    assert all(str(path) in answer.said for path in (tmp_path / "out").iterdir())
    (tmp_path / "out" / "predictions.json").unlink()
    found = predictor(pictures.visible, pictures.infrared, LEFT)
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            assert image.format == {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
            if "mask" in path.name:
                assert np.array_equal(np.asarray(image), found.mask * np.uint8(255))
            if "fused" in path.name:
                assert np.abs(np.asarray(image).astype(int) - found.fused).mean() < 4


def test_kinds_of_pictures_are_written_once_in_the_usual_order():
    assert picture_kinds("panel, mask,mask") == ("mask", "panel")


def test_pictures_of_the_other_format_count_as_those_of_an_earlier_run(ask, pictures, tmp_path):
    pair = pictures.folder / "visible" / "scene.png", pictures.folder / "infrared" / "scene.png"
    ask(*pair, "--format", "jpg")
    ask(*pair, "--save", "mask")
    assert len(written(tmp_path / "out" / "earlier_run_1")) == 4
    assert written(tmp_path / "out") == {"earlier_run_1", "scene-the_red_disc_on_the_left-mask.png"}


@pytest.mark.parametrize("size", [(4000, 1500), (2000, 1500), (1000, 3000), (90, 60), (20, 4)])
def test_a_panel_of_large_pictures_has_a_width_for_screens(size):
    image = np.zeros((*size[::-1], 3), np.uint8)
    prediction = Prediction(image, np.zeros(size[::-1], bool), None)
    page = prediction_panel(SimpleNamespace(visible=image, infrared=image), LEFT, prediction)
    assert page.shape[1] <= 1600
    assert page.shape[1] > 1500 or size[0] < 1000
    shown = int((page == 0).all(2).sum()) / 4
    assert shown == pytest.approx(np.prod(panel_cell(size, 4)), rel=0.05) or size[0] < 1000


def test_the_pictures_of_a_panel_have_a_height_however_wide_they_are():
    assert panel_cell((4000, 1), 4) == (1568, 1)


def test_a_panel_says_that_nothing_was_found(monkeypatch):
    titles = []
    monkeypatch.setattr("evaluation.predictions.panel", lambda sentence, pictures: titles.extend(pictures))
    image = np.zeros((60, 90, 3), np.uint8)
    for mask in (np.zeros((60, 90), bool), np.ones((60, 90), bool)):
        prediction_panel(SimpleNamespace(visible=image, infrared=image), LEFT, Prediction(image, mask, None))
    assert titles[3] == "prediction: nothing found" and titles[7] == "prediction"


def test_a_picture_of_many_pixels_is_refused_unless_they_are_allowed(ask, pictures):
    pair = pictures.folder / "visible" / "scene.png", pictures.folder / "infrared" / "scene.png"
    answer = ask(*pair, "--max_pixels", 90 * 60 - 1)
    assert answer.code == 1 and f"{pair[0]} cannot be decoded" in answer.said and "more than 5399 pixels" in answer.said
    assert ask(*pair, "--max_pixels", 90 * 60).code == 0


@pytest.mark.parametrize("kind", ["visible", "infrared"])
def test_whatever_happens_to_one_pair_the_later_ones_are_processed(kind, ask, pictures, monkeypatch, tmp_path):
    for folder in ("visible", "infrared"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            Image.fromarray(getattr(pictures, folder)).save(tmp_path / folder / f"{name}.png")

    def fail(*paths_and_more):
        if any(str(path).endswith(f"{kind}/b.png") for path in paths_and_more):
            raise SyntaxError("broken \x1b[31m chunk\nin a file")
        return read_pair(*paths_and_more)

    monkeypatch.setattr("pair_runner.read_pair", fail)
    answer = ask(tmp_path / "visible", tmp_path / "infrared")
    assert answer.code == 1
    assert "b.png cannot be used (SyntaxError: broken \\x1b[31m chunk)" in answer.said
    assert "1 of 3 pairs could not be used" in answer.said and "Traceback" not in answer.said
    assert sorted(name.split("-")[0] for name in written(tmp_path / "out")) == 4 * ["a"] + 4 * ["c"]


def test_names_and_sentences_are_printed_without_escape_sequences(ask, pictures, tmp_path):
    name = tmp_path / "a\x1b[31m.png"
    Image.fromarray(pictures.visible).save(name)
    answer = ask(name, pictures.folder / "infrared" / "scene.png", text="the \x1b[2J disc")
    assert "\x1b" not in answer.said
    assert "a\\x1b[31m, 'the \\x1b[2J disc'" in answer.said


def test_a_reader_that_goes_away_does_not_end_the_work(trained, pictures, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "predict.py", "--ckpt", trained / "last.pth", "--visible",
         pictures.folder / "visible" / "scene.png", "--infrared", pictures.folder / "infrared" / "scene.png",
         "--text", LEFT, "--out", tmp_path / "out", "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    complaint = process.stderr.read()
    assert process.wait() == 0
    assert complaint == ""
    assert len(written(tmp_path / "out")) == 4


def test_standard_output_without_a_reader_takes_anything():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        tolerant = TolerantStream(stream)
        for _ in range(3):
            assert tolerant.write("line\n" * 9999) == 5 * 9999
            tolerant.flush()


def test_standard_output_that_cannot_be_written_is_said_once(capsys):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        tolerant = TolerantStream(stream)
        for _ in range(3):
            tolerant.write("line\n" * 9999)
            tolerant.flush()
    assert capsys.readouterr().err == "error: standard output cannot be written (No space left on device)\n"


def test_pictures_of_an_earlier_run_are_kept_but_not_moved_for_nothing(ask, pictures, tmp_path):
    pair = pictures.folder / "visible" / "scene.png", pictures.folder / "infrared" / "scene.png"
    ask(*pair)
    ask(*pair, text=RIGHT)
    assert len(written(tmp_path / "out")) == 9  # other names: no picture in the way, but predictions.json
    assert written(tmp_path / "out" / "earlier_run_1") == set()
    first = (tmp_path / "out" / "scene-the_red_disc_on_the_left-fused.png").stat().st_mtime_ns
    assert "earlier_run_2" in ask(*pair).said
    moved = tmp_path / "out" / "earlier_run_2"
    assert (moved / "scene-the_red_disc_on_the_left-fused.png").stat().st_mtime_ns == first
    assert len(written(moved)) == 4
    (tmp_path / "scene.png").write_text("no image")
    assert ask(tmp_path / "scene.png", pair[1]).code == 1
    assert not (tmp_path / "out" / "earlier_run_3").exists()


def test_averaging_with_the_mirror_makes_left_and_right_alike(trained, pictures):
    flip = Predictor.from_checkpoint(str(trained / "last.pth"), device="cpu", flip=True)
    visible, infrared = (resize(image, (64, 64)) for image in (pictures.visible, pictures.infrared))
    found = flip(visible, infrared, LEFT).probability
    assert np.abs(found - flip(visible[:, ::-1], infrared[:, ::-1], RIGHT).probability[:, ::-1]).max() < 1e-5
    assert np.abs(found - flip(visible[:, ::-1], infrared[:, ::-1], LEFT).probability[:, ::-1]).max() > 1e-4


def test_bfloat16_gives_nearly_the_same(trained, predictor, pictures):
    amp = Predictor.from_checkpoint(str(trained / "last.pth"), device="cpu", amp=True)
    found, exact = (one(pictures.visible, pictures.infrared, LEFT) for one in (amp, predictor))
    assert not np.array_equal(found.probability, exact.probability)
    assert np.abs(found.fused.astype(int) - exact.fused).mean() < 3
    assert np.abs(found.probability - exact.probability).mean() < 0.05


@pytest.mark.parametrize(("visible", "infrared", "more", "code", "message"), [
    ("absent.png", "scene.png", [], 2, "--visible: there is no file or folder"),
    ("", "scene.png", [], 2, "must both be files or both folders"),
    ("scene.png", "scene.png", ["--text", " "], 2, "--text: the sentence is empty"),
    ("scene.png", "scene.png", ["--text", "caf\udce9"], 2, "or not valid UTF-8"),
    ("scene.png", "scene.png", ["--ckpt", "absent.pth"], 2, "--ckpt: there is no 'absent.pth'"),
    ("scene.png", "scene.png", ["--ckpt", "README.md"], 1, "--ckpt: README.md cannot be read"),
    ("scene.png", "scene.png", ["--ck_bert", "/nowhere"], 2, "--ck_bert: there is no folder '/nowhere'"),
    ("scene.png", "scene.png", ["--mha", "1-2"], 2, "--mha: '1-2' is not four numbers"),
    ("scene.png", "scene.png", ["--img_size", "32"], 2, "take 33 or more"),
    ("scene.png", "scene.png", ["--save", "fused,all"], 2, "--save: must be some of fused,mask,overlay,panel"),
    ("scene.png", "scene.png", ["--save", ""], 2, "--save: must be some of"),
    ("scene.png", "scene.png", ["--format", "gif"], 2, "--format: invalid choice"),
    ("scene.png", "scene.png", ["--max_pixels", "0"], 2, "--max_pixels: must be a whole number of at least 1"),
    ("scene.png", "scene.png", ["--img_size", "99999"], 2, "99999 is too large: take at most 16384"),
    ("scene.png", "scene.png", ["--out", "README.md"], 2, "--out: the folder 'README.md' cannot be made")])
def test_what_cannot_work_ends_with_one_sentence(visible, infrared, more, code, message, ask, pictures):
    answer = ask(pictures.folder / "visible" / visible, pictures.folder / "infrared" / infrared, *more)
    assert answer.code == code
    assert message in answer.said


@pytest.mark.parametrize(("content", "message"), [(b"", "there are 0 bytes"), (b"a text", "its format is not known")])
def test_a_bad_picture_is_named(content, message, ask, pictures, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(content)
    answer = ask(pictures.folder / "visible" / "scene.png", tmp_path / "mine.jpg")
    assert answer.code == 1
    assert f"{tmp_path}/mine.jpg cannot be decoded as an image: {message}" in answer.said
    assert not written(tmp_path / "out")


def test_a_doubtful_pair_is_pointed_out_and_a_file_of_four_channels_is_split(ask, pictures, tmp_path):
    scene = pictures.folder / "visible" / "scene.png"
    assert "are the same picture" in ask(scene, scene).said
    Image.fromarray(np.dstack([pictures.visible, pictures.infrared])).save(tmp_path / "rgbt.png")
    said = ask(tmp_path / "rgbt.png", tmp_path / "rgbt.png").said
    assert "the infrared image its fourth" in said and "are the same picture" not in said
    assert "in false colours" in ask(pictures.folder / "infrared" / "scene.png", scene).said


def test_two_files_of_one_name_are_not_guessed_between(ask, pictures, tmp_path):
    for name in ("a.png", "a.bmp"):
        Image.fromarray(pictures.visible).save(tmp_path / name)
    answer = ask(tmp_path, pictures.folder / "infrared")
    assert answer.code == 1
    assert "a.bmp and" in answer.said and "share a name" in answer.said


def test_folders_without_a_pair_say_so(ask, pictures, tmp_path):
    answer = ask(tmp_path, pictures.folder / "infrared")
    assert answer.code == 1
    assert "(0 found) has the name of one in" in answer.said


def truncated(kind: str) -> Image.Image:
    """An image that Pillow has opened, but whose pixels it cannot decode."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), kind)
    return Image.open(io.BytesIO(buffer.getvalue()[:2000]))


@pytest.mark.parametrize(("visible", "text", "message"), [
    ("a path", LEFT, "visible: an image must be a NumPy array or a PIL image, not str"),
    (np.zeros((4, 5, 2)), LEFT, "visible: an image must be an array of numbers of shape"),
    (np.zeros((0, 5)), LEFT, r"not float64 \(0, 5\)"),
    (np.full((4, 5), np.nan), LEFT, "visible: some of its pixels are infinite or NaN"),
    (np.zeros((4, 5)), "", "the sentence must be a text that is not empty"),
    (np.zeros((4, 5)), "caf\udce9", "which are no characters"),
    (np.zeros((4, 5)), None, "the sentence must be a text"),
    (truncated("PNG"), LEFT, "^visible: "), (truncated("JPEG"), LEFT, "^visible: "),
    (truncated("TIFF"), LEFT, "^visible: "), (object(), LEFT, "visible: an image must be")])
def test_programs_get_a_value_error_that_says_what_is_wrong(visible, text, message, predictor, pictures):
    with pytest.raises(ValueError, match=message):
        predictor(visible, pictures.infrared, text)


@pytest.mark.parametrize(("changes", "message"), [
    ({"path": "absent.pth"}, "^there is no file 'absent.pth'"),
    ({"device": "tpu"}, "^device: 'tpu' is none of"),
    ({"bert_tokenizer": "/nowhere"}, "^bert_tokenizer: there is no folder '/nowhere'"),
    ({"img_size": 32}, "^img_size: must be a whole number of at least 33"),
    ({"mha": "a"}, "is not four numbers of heads"),
    ({"mha": (1, 1, 1, 1)}, "^mha: must be text as in 4-4-4-4"), ({"mha": 0}, "^mha: must be text"),
    ({"img_size": "64"}, "^img_size: must be a whole number"), ({"img_size": 64.0}, "^img_size: must be"),
    ({"img_size": float("nan")}, "^img_size: must be a whole number"), ({"img_size": True}, "^img_size: must be"),
    ({"img_size": [64, 64]}, "^img_size: must be a whole number"), ({"img_size": 10**9}, "and at most 16384 pixels"),
    ({"device": None}, "^device: must be a name"), ({"device": 0}, "^device: must be a name"),
    ({"device": torch.device("meta")}, "^device: 'meta' is none of"), ({"device": ""}, "^device: '' is none of"),
    ({"path": None}, "^path: must be that of a checkpoint"), ({"path": 7}, "^path: must be a path, not 7"),
    ({"path": "a\0b"}, "there is no file"), ({"ck_bert": ["a"]}, "^ck_bert: must be a path"),
    ({"bert_tokenizer": 1.5}, "^bert_tokenizer: must be a path")])
def test_programs_get_a_value_error_for_a_checkpoint_too(changes, message, trained):
    with pytest.raises(ValueError, match=message):
        Predictor.from_checkpoint(**{"path": str(trained / "last.pth"), "device": "cpu"} | changes)


def test_programs_may_use_the_types_of_their_libraries(trained, tiny_bert, predictor, pictures):
    found = Predictor.from_checkpoint(trained / "last.pth", torch.device("cpu"), bert_tokenizer=Path(tiny_bert),
                                      ck_bert=Path(tiny_bert), img_size=np.int64(64))
    assert same(found(pictures.visible, pictures.infrared, LEFT),
                predictor(pictures.visible, pictures.infrared, LEFT))


def test_an_output_that_is_not_finite_is_no_prediction(trained, pictures):
    spoilt = Predictor.from_checkpoint(trained / "last.pth", "cpu")
    next(spoilt.model.model.fuser.parameters()).data.fill_(3e38)
    with pytest.raises(ValueError, match="is not finite"):
        spoilt(pictures.visible, pictures.infrared, LEFT)


def test_a_pixel_of_two_equal_logits_is_background_as_in_an_evaluation(predictor, pictures, monkeypatch):
    even = Output(torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 64, 64))
    monkeypatch.setattr(predictor.model, "answer", lambda *_: even)
    assert not predictor(pictures.visible, pictures.infrared, LEFT).mask.any()


def test_the_command_line_is_checked_before_anything_heavy_is_imported():
    code = "import sys, predict; predict.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
