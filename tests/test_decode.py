"""Images and masks out of bytes: exactly Pillow's pixels, and odd kinds that can be used after all."""
import io

import numpy as np
import pytest
from PIL import Image
from rows import encode, npy

from data import decode
from data.decode import decode_image, decode_mask, decode_pixels

COLOURS = np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)
GREY = COLOURS[..., 0].copy()


def as_pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("kind, mode", [
    ("PNG", "1"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "RGB"), ("PNG", "RGBA"), ("BMP", "RGB"),
    ("TIFF", "CMYK"), ("TIFF", "L"), ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA")])
def test_images_of_8_bits_are_pillows(kind, mode):
    content = encode(COLOURS, kind, mode)
    expected = as_pillow(content)
    pixels = decode_image(content)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable and np.array_equal(pixels, expected)
    fast = decode_pixels(memoryview(content), np.empty((21, 34, 4), np.uint8))
    assert np.array_equal(fast if mode == "L" else fast[..., :3], expected[..., 0] if mode == "L" else expected)


@pytest.mark.parametrize("options", [
    {"quality": 30}, {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}])
def test_every_kind_of_jpeg_is_decoded_within_one_level_of_pillow(options):
    smooth = Image.fromarray(COLOURS[..., :3].copy()).resize((331, 203), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", **options)
    content = buffer.getvalue()
    assert np.abs(decode_image(content).astype(int) - as_pillow(content)).max() <= 1
    behind = content + b"\0" * 9  # as some cameras leave it
    assert np.abs(decode_image(behind).astype(int) - as_pillow(content)).max() <= 1


def test_memory_is_used_again_only_where_it_fits():
    small, large = encode(COLOURS, "JPEG", "RGB"), encode(np.repeat(COLOURS, 2, axis=0), "JPEG", "RGB")
    first = decode_pixels(small)
    again = decode_pixels(small, first)
    assert np.shares_memory(first, again) and np.array_equal(again[..., :3], as_pillow(small))
    other = decode_pixels(large, again)
    assert not np.shares_memory(other, again) and np.array_equal(other[..., :3], as_pillow(large))


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    for read, content in ((decode_image, encode(COLOURS, "JPEG", "RGB")), (decode_mask, npy(GREY))):
        with pytest.raises(ValueError, match="more than"):
            read(content)


def test_an_exif_rotation_leaves_the_pixels_as_they_are_stored():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    Image.fromarray(GREY).save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).shape == (21, 34, 3)
    assert np.array_equal(decode_image(buffer.getvalue()), as_pillow(buffer.getvalue()))


def deep(values, dtype, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype)).save(buffer, kind)
    return decode_image(buffer.getvalue())


@pytest.mark.parametrize("dtype, kind", [
    (np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")])
def test_values_beyond_8_bits_are_stretched_between_their_percentiles_instead_of_clipped(dtype, kind):
    counts = np.linspace(7000, 9000, 40 * 50).reshape(40, 50).astype(dtype)  # a thermal camera's
    pixels = deep(counts, dtype, kind)
    low, high = np.percentile(counts, (1, 99))
    expected = ((counts.astype(float) - low) / (high - low) * 255).clip(0, 255)
    assert pixels.shape == (40, 50, 3) and np.abs(pixels[..., 1] - expected).max() <= 0.5
    assert pixels.min() == 0 and pixels.max() == 255


def test_values_that_fit_8_bits_keep_their_meaning():
    assert np.array_equal(deep(GREY, np.uint16, "PNG")[..., 0], GREY)
    assert np.array_equal(deep(GREY, np.float32, "TIFF")[..., 0], GREY)
    assert np.array_equal(deep(GREY / 255, np.float32, "TIFF")[..., 0], GREY)


def test_an_even_surface_can_be_stretched():
    assert np.unique(deep(np.full((4, 5), 8000), np.uint16, "PNG")).size == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("order", "CF")
def test_masks_are_what_lies_above_0_in_any_type(dtype, order):
    values = np.asarray(np.random.default_rng(0).integers(0, 3, (6, 9)) * 85, dtype, order=order)
    mask = decode_mask(npy(values))
    assert mask.dtype == np.uint8 and np.array_equal(mask, (values > 0).astype(np.uint8))
    assert np.array_equal(decode_mask(memoryview(npy(values))), mask)


def test_a_mask_may_be_255_or_empty_throughout():
    assert decode_mask(npy(np.full((4, 5), 255, np.uint8))).all()
    assert not decode_mask(npy(np.zeros((4, 5), np.uint8))).any()
