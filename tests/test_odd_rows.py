"""Rows that look odd and can be used: differing sizes, empty masks, sentences of every kind."""
import numpy as np
import pytest
import torch
from PIL import Image
from rows import encode, make_row, npy, tiny_tokenizer, write

from data import MMRISDataset
from data.resize import Resizer
from utils.color import destandardise


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


def sample_of(tmp_path, tokenizer, **cells):
    return MMRISDataset(write(tmp_path / "a.parquet", [make_row(0) | cells]), tokenizer, 40, originals=True)[0]


def pixels(image):
    return (destandardise(image) * 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("visible", [(30, 50, 3), (30, 50), (40, 60, 3), (1, 1, 3), (7, 90, 3)])
@pytest.mark.parametrize("infrared", [(30, 50, 3), (30, 50), (60, 80), (2, 3, 3)])
def test_images_of_any_two_sizes_and_kinds_are_each_resized_on_their_own(tmp_path, tokenizer, visible, infrared):
    rng = np.random.default_rng(0)
    colours = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in (visible, infrared)]
    sample = sample_of(tmp_path, tokenizer, visible_image=encode(colours[0]), infrared_image=encode(colours[1]))
    assert sample["size"] == (visible[1], visible[0]) and sample["mask"].shape == (37, 53)
    exact = MMRISDataset(str(tmp_path / "a.parquet"), tokenizer, 40, exact=True)[0]
    for image, name in zip(colours, ("vis", "ir"), strict=True):
        expected = Image.fromarray(image).convert("RGB").resize((40, 40), Image.Resampling.BILINEAR)
        assert np.abs(pixels(sample[name]) - np.asarray(expected)).max() < 1.001
        assert np.abs(pixels(exact[name]) - np.asarray(expected)).max() < 0.001


def test_an_infrared_image_that_is_grey_but_stored_in_colour_stays_what_it_is(tmp_path, tokenizer):
    grey = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    almost = np.repeat(grey[..., None], 3, axis=2)
    stored = encode(almost)
    almost[5, 7, 2] ^= 128  # a single blue pixel must not be lost
    plain = sample_of(tmp_path, tokenizer, infrared_image=encode(grey))["ir"]
    assert torch.equal(sample_of(tmp_path, tokenizer, infrared_image=stored)["ir"], plain)
    expected = Image.fromarray(almost).resize((40, 40), Image.Resampling.BILINEAR)
    other = sample_of(tmp_path, tokenizer, infrared_image=encode(almost))["ir"]
    assert np.abs(pixels(other) - np.asarray(expected)).max() < 1.001 and not torch.allclose(other, plain, atol=0.01)


def test_a_mask_without_an_object_is_background_throughout(tmp_path, tokenizer):
    sample = sample_of(tmp_path, tokenizer, segmentation=npy(np.zeros((37, 53), np.uint8)))
    assert not sample["target"].any() and not sample["mask"].any()


def test_a_mask_of_another_size_is_resized_on_its_own(tmp_path, tokenizer):
    mask = np.random.default_rng(0).integers(0, 2, (80, 60), dtype=np.uint8)
    sample = sample_of(tmp_path, tokenizer, segmentation=npy(mask))
    assert np.array_equal(sample["target"], Image.fromarray(mask).resize((40, 40), Image.Resampling.NEAREST))
    assert sample["mask"].shape == (80, 60) and sample["size"] == (53, 37)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (37, 53), (300, 300)])
def test_masks_take_the_very_pixels_that_pillow_takes(tmp_path, tokenizer, size):
    mask = np.random.default_rng(0).integers(0, 2, size, dtype=np.uint8)  # at 4/3, centres fall between pixels
    path = write(tmp_path / "a.parquet", [make_row(0) | {"segmentation": npy(mask)}])
    for side in (480, 96):
        target = MMRISDataset(path, tokenizer, side)[0]["target"]
        assert np.array_equal(target, Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


@pytest.mark.parametrize("question, tokens", [
    ("zzz qqq", 20), ("the red man " * 834, 20), ("左边的红色汽车", 9), ("?", 3), ("  a man\n", 4)])
def test_sentences_of_any_length_and_script_have_tokens(tmp_path, tokenizer, question, tokens):
    sample = sample_of(tmp_path, tokenizer, question=question)
    assert sample["input_ids"].shape == (20,) and 3 <= sample["attention_mask"].sum() <= tokens
    assert sample["input_ids"].dtype == sample["attention_mask"].dtype == torch.int64


def test_the_fast_way_is_within_one_level_of_pillow_on_small_pictures():
    rng = np.random.default_rng(0)
    resizer, out = Resizer(96), [torch.empty(3, 96, 96) for _ in range(2)]
    for _ in range(40):
        images = [rng.integers(0, 256, (120, 120, channels), dtype=np.uint8) for channels in (4, 1)]
        resizer.pair(images[0].copy(), images[1][..., 0], *out)
        for image, result in zip((images[0][..., :3], images[1][..., 0]), out, strict=True):
            expected = Image.fromarray(image.copy()).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
            assert np.abs(pixels(result) - np.asarray(expected)).max() < 1.001
