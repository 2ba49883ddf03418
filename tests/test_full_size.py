"""Fusion at the size of the pictures: --fuse_size and --tile."""
import io
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import arguments, in_process
from evaluations import evaluate, fused_stem, read_metrics, read_samples, write_wide_scenes
from PIL import Image

from benchmarks.reference import inputs
from evaluation.full_size import FullSizeFuser, tiles
from evaluation.inference import Inference
from evaluation.results import encode_jpeg
from models import build_model
from predictor import Predictor
from utils.color import standardise
from utils.draw import resize, to_image
from utils.sizes import TILE

TEXT, OTHER = "the red disc on the left", "the blue square"
CPU = torch.device("cpu")


def noise(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A visible and an infrared picture in which every pixel counts."""
    return tuple(np.random.default_rng(5).integers(0, 256, (2, height, width, 3), np.uint8))


def method(tiny_bert, name: str, **options) -> Inference:
    """A model with a narrow fuser whose weights are random, or with another fusion method."""
    torch.manual_seed(0)
    flags = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert, prefusion_model=name)
    model = build_model(flags).eval()
    for layer in model.fuser.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):  # so that all levels show in the result
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Inference(model, **options)


@pytest.fixture(scope="module")
def model(tiny_bert):
    return method(tiny_bert, "unet_fuser")


@pytest.fixture(scope="module")
def sentence() -> tuple[torch.Tensor, torch.Tensor]:
    batch = inputs(48, 64, vocab=20)
    return batch["input_ids"][:1], batch["attention_mask"][:1]


def fused(model, sentence, pictures, **options) -> np.ndarray:
    fuser = FullSizeFuser(model, CPU, **options)
    return fuser.fuse(fuser.encode(*pictures), model.encode_text(*sentence))


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize("flip", [False, True])
def test_a_picture_fused_in_tiles_is_the_picture_fused_whole(flip, tiny_bert, sentence):
    model, pictures = method(tiny_bert, "unet_fuser", flip=flip), noise(301, 210)
    whole, tiled = (fused(model, sentence, pictures, tile=tile) for tile in (0, 128))
    assert differences(whole, tiled).max() <= 1 and (whole != tiled).mean() < 1e-3
    assert whole.std() > 5  # there is something to see


def test_the_fused_image_is_that_of_the_fuser_on_the_whole_picture(model, sentence):
    pictures = noise(88, 64)
    vis, ir = (standardise(torch.tensor(pixels).permute(2, 0, 1)[None] / 255) for pixels in pictures)
    with torch.inference_mode():
        expected = to_image(model(vis, ir, *sentence).fused[0])
    assert np.array_equal(fused(model, sentence, pictures), expected)


@pytest.mark.parametrize(("width", "height"), [(85, 59), (9, 16), (4, 7), (2, 33), (1, 1)])
def test_the_edges_of_a_picture_are_continued_by_reflection(width, height, model, sentence):
    pictures = noise(width, height)
    rows, columns = (np.pad(np.arange(side), (0, -side % 8), "reflect") for side in (height, width))
    continued = [pixels[rows][:, columns] for pixels in pictures]
    expected = fused(model, sentence, continued)[:height, :width]
    assert np.array_equal(fused(model, sentence, pictures), expected)


@pytest.mark.parametrize(("height", "width", "tile"), [
    (3000, 4000, 1024), (300, 210, 128), (205, 128, 128), (2000, 20, 135), (8, 99999, 700), (1300, 1300, 1024)])
def test_tiles_cover_every_pixel_once_and_see_all_that_it_depends_on(height, width, tile):
    covered = np.zeros((height + 7, width + 7), np.uint8)
    assert len(tiles(height, width, tile)) > 1
    for spans in tiles(height, width, tile):
        for span, side in zip(spans, (height, width), strict=True):
            padded = side + -side % 8
            assert span.start % 8 == 0 and span.stop % 8 == 0 and span.stop - span.start <= tile
            assert span.first - span.start >= 46 or span.first == span.start == 0
            assert span.stop - span.last >= 46 or span.last == span.stop == padded
        covered[tuple(slice(span.first, span.last) for span in spans)] += 1
    assert (covered[:height, :width] == 1).all()


def test_pictures_of_hardly_more_pixels_than_a_tile_are_fused_whole():
    assert len(tiles(64, 409, 128)) == len(tiles(480, 640, TILE)) == len(tiles(3000, 4000, 0)) == 1
    assert len(tiles(64, 410, 128)) > 1


def test_a_number_is_the_longer_side_and_enlarges_nothing(model, sentence):
    pictures = noise(120, 80)
    small = [resize(pixels, (48, 32)) for pixels in pictures]
    assert np.array_equal(fused(model, sentence, pictures, size=48), fused(model, sentence, small))
    assert np.array_equal(fused(model, sentence, pictures, size=500), fused(model, sentence, pictures))
    assert fused(model, sentence, noise(300, 2), size=40).shape == (1, 40, 3)


def test_methods_without_parameters_work_at_full_size_too(tiny_bert, sentence):
    visible, infrared = noise(131, 130)
    grey = np.repeat(infrared[..., :1], 3, axis=2)
    for name, expected in (("visible", visible), ("infrared", grey)):
        assert np.array_equal(fused(method(tiny_bert, name), sentence, (visible, grey), tile=128), expected)


# Predictor and predict.py

@pytest.fixture(scope="module")
def pictures(scenes, tmp_path_factory):
    """A visible and an infrared picture of 180×150 px, in memory and on disk."""
    folder = tmp_path_factory.mktemp("pictures")
    row = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()[0]
    images = [np.array(Image.open(io.BytesIO(row[f"{kind}_image"])).convert("RGB").resize((180, 150)))
              for kind in ("visible", "infrared")]
    files = [folder / "visible.png", folder / "infrared.png"]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    return SimpleNamespace(images=images, files=files)


def opened(trained, **options) -> Predictor:
    return Predictor.from_checkpoint(trained / "last.pth", "cpu", **options)


def test_the_mask_does_not_depend_on_the_size_at_which_a_picture_is_fused(trained, pictures):
    native, network, number, tiled = (opened(trained, **options)(*pictures.images, TEXT) for options in (
        {}, {"fuse_size": "network"}, {"fuse_size": 100}, {"tile": 128}))
    for other in (network, number, tiled):
        assert np.array_equal(native.probability, other.probability) and np.array_equal(native.mask, other.mask)
        assert other.fused.shape == native.fused.shape == (150, 180, 3)
    assert differences(native.fused, tiled.fused).max() <= 1
    sharpness = [np.abs(np.diff(result.fused.astype(int), axis=1)).mean() for result in (native, number, network)]
    assert sharpness[0] > sharpness[1] > sharpness[2]


def test_at_network_size_the_fused_image_is_the_one_that_the_segmenter_saw(trained, pictures):
    predictor, seen = opened(trained, fuse_size="network"), []
    predictor.model.model.segmenter.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = predictor(*pictures.images, TEXT)
    assert seen[0].shape == (1, 3, 64, 64) and len(seen) == 1
    assert np.array_equal(found.fused, resize(to_image(seen[0][0]), (180, 150)))


@pytest.mark.parametrize(("options", "passes"), [({}, 2), ({"tile": 128}, 1 + 2 * 6), ({"fuse_size": 64}, 2),
                                                 ({"fuse_size": "network"}, 1)])
def test_what_is_fused_whole_is_encoded_once_for_all_sentences(options, passes, trained, pictures):
    predictor, calls = opened(trained, **options), []
    predictor.model.model.fuser.net.y_inc.register_forward_hook(lambda *_: calls.append(1))
    pair = predictor.encode_pair(*pictures.images)
    one, other = (predictor.predict(pair, text) for text in (TEXT, OTHER))
    assert len(calls) == passes
    assert not np.array_equal(one.probability, other.probability)


def test_a_picture_of_the_networks_size_is_fused_once(trained, pictures):
    predictor, calls = opened(trained), []
    predictor.model.model.fuser.net.y_inc.register_forward_hook(lambda *_: calls.append(1))
    predictor(*(resize(image, (64, 64)) for image in pictures.images), TEXT)
    assert len(calls) == 1


def test_predict_writes_the_picture_at_its_own_size_unless_told_otherwise(trained, pictures, tmp_path):
    visible, infrared = pictures.files
    for flags, options in (((), {}), (("--fuse_size", "network"), {"fuse_size": "network"}),
                           (("--fuse_size", 96, "--tile", 0), {"fuse_size": 96, "tile": 0})):
        in_process("predict.py", "--ckpt", trained / "last.pth", "--visible", visible, "--infrared", infrared, "--text",
                   TEXT, "--out", tmp_path, "--device", "cpu", "--save", "fused", *flags)
        found = np.asarray(Image.open(tmp_path / "visible-the_red_disc_on_the_left-fused.png"))
        assert np.array_equal(found, opened(trained, **options)(*pictures.images, TEXT).fused)


def test_a_bar_counts_the_tiles_of_predict_and_no_others(trained, pictures, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("evaluation.full_size.progress_bar", lambda parts, disable, **_: (
        shown.append((len(parts), disable)), parts)[1])
    for tile in (128, 0):
        in_process("predict.py", "--ckpt", trained / "last.pth", "--visible", pictures.files[0], "--infrared",
                   pictures.files[1], "--text", TEXT, "--out", tmp_path, "--device", "cpu", "--tile", tile)
    opened(trained, tile=128)(*pictures.images, TEXT)
    assert shown == [(6, False), (1, True), (6, True)]


def test_a_fused_image_that_is_not_finite_is_no_prediction(trained, pictures, monkeypatch):
    predictor = opened(trained)
    monkeypatch.setattr(predictor.model, "fuse", lambda *_: torch.full((1, 3, 152, 184), torch.nan))
    with pytest.raises(ValueError, match="the fused image of this pair and sentence is not finite"):
        predictor(*pictures.images, TEXT)


@pytest.mark.parametrize(("flags", "message"), [
    (["--fuse_size", "full"], "--fuse_size: must be native, network or a whole number of at least 8, not 'full'"),
    (["--fuse_size", "7"], "--fuse_size: must be native, network or a whole number of at least 8, not '7'"),
    (["--fuse_size", "99999"], "whole number of at most 16384"), (["--tile", "100"], "--tile: must be a whole number"),
    (["--tile", "-1"], "at least 128, not '-1'"), (["--tile", "x"], "at least 128, not 'x'")])
@pytest.mark.parametrize("name", ["predict.py", "test.py"])
def test_sizes_that_cannot_be_are_refused_on_the_command_line(name, flags, message, trained, pictures, tmp_path):
    needed = ["--visible", pictures.files[0], "--infrared", pictures.files[1], "--text", TEXT, "--out", tmp_path]
    result = in_process(name, "--ckpt", trained / "last.pth", *(needed if name == "predict.py" else []), *flags,
                        ok=False)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"fuse_size": "full"}, "^fuse_size: must be native, network or a whole number of at least 8 and at most"),
    ({"fuse_size": 7}, "^fuse_size: .* not 7"), ({"fuse_size": None}, "^fuse_size: "), ({"fuse_size": 64.0}, "^fuse_s"),
    ({"fuse_size": np.zeros(2)}, "^fuse_size: "), ({"tile": 100}, "^tile: must be 0 or a whole number of at least 128"),
    ({"tile": True}, "^tile: "), ({"tile": None}, "^tile: "), ({"tile": 10**6}, "^tile: ")])
def test_programs_get_a_value_error_for_sizes_that_cannot_be(options, message, trained):
    with pytest.raises(ValueError, match=message):
        opened(trained, **options)


# test.py

@pytest.fixture(scope="module")
def evaluated(trained, scenes, tmp_path_factory):
    """Evaluations of pictures of 100×70 px, fused at the network's size and at their own."""
    folder = tmp_path_factory.mktemp("evaluated")
    parquet = write_wide_scenes(scenes, folder / "wide.parquet")
    for size in ("network", "native"):
        evaluate(trained, parquet, folder / size, "--fuse_size", size, "--fusion_metrics", "-b", 3)
    return SimpleNamespace(folder=folder, rows=pq.read_table(parquet).to_pylist())


def test_an_evaluation_writes_and_measures_the_pictures_that_predict_makes(evaluated, trained):
    predictor, row = opened(trained), evaluated.rows[4]
    pair = (np.array(Image.open(io.BytesIO(row[f"{kind}_image"]))) for kind in ("visible", "infrared"))
    found = predictor(*pair, row["question"])
    written = evaluated.folder / "native" / "fusion" / f"{fused_stem(evaluated.rows, 4)}.jpg"
    assert written.read_bytes() == encode_jpeg(found.fused)
    network, native = (read_metrics(evaluated.folder / size) for size in ("network", "native"))
    assert native["settings"]["fuse_size"] == "native" and network["settings"]["fuse_size"] == "network"
    assert native["fusion_metrics"]["fused"] != network["fusion_metrics"]["fused"]
    assert native["fusion_metrics"]["average"] == network["fusion_metrics"]["average"]


def test_the_masks_and_their_metrics_are_those_of_the_published_way(evaluated):
    network, native = (evaluated.folder / size for size in ("network", "native"))
    for path in (network / "Binary").iterdir():
        assert path.read_bytes() == (native / "Binary" / path.name).read_bytes()
    assert [row["iou"] for row in read_samples(network)] == [row["iou"] for row in read_samples(native)]
    assert read_metrics(network)["mIoU"] == read_metrics(native)["mIoU"]


def test_nothing_is_fused_for_pictures_that_nobody_wants(trained, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluator.FullSizeFuser", None)
    evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path, "--fuse_size", "native", "--save", "masks")
    evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path)


def test_a_row_whose_picture_is_not_finite_is_noted_and_the_others_are_measured(trained, scenes, tmp_path, monkeypatch):
    fuse = FullSizeFuser.fuse

    def fail_once(self, pair, *sentence):
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise ValueError("not finite")
        return fuse(self, pair, *sentence)

    monkeypatch.setattr(FullSizeFuser, "fuse", fail_once)
    result = evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path / "out", "--fuse_size", "native")
    assert "is not finite (NaN or infinity) for 1 sample" in result.stdout
    assert len(list((tmp_path / "out" / "fusion").iterdir())) == 7
