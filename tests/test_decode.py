"""Images and masks out of bytes: exactly Pillow's pixels, and odd kinds that can be used after all."""
import contextlib
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from rows import encode, npy

from data.decode import MAX_PIXELS, decode_image, decode_pixels, deep_values, open_image, read_mask

COLOURS = np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)
GREY = COLOURS[..., 0].copy()


def decode_mask(content, **limit):
    return read_mask(content, **limit).pixels


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


@pytest.mark.parametrize("read, content", [
    (decode_image, encode(COLOURS, "JPEG", "RGB")), (decode_image, encode(COLOURS)), (decode_mask, npy(GREY)),
    (decode_mask, encode(GREY))])
def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(read, content):
    assert read(content, max_pixels=21 * 34).shape[:2] == (21, 34)
    with pytest.raises(ValueError, match="more than 713 pixels"):
        read(content, max_pixels=21 * 34 - 1)


def test_the_limit_can_be_raised_above_pillows_own_which_stays_as_it_was():
    content = encode(np.zeros((9_500, 9_500), bool))
    with pytest.raises(ValueError, match="more than"):
        decode_mask(content)
    assert decode_mask(content, max_pixels=10**8).shape == (9_500, 9_500)
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_formats_whose_decoders_run_other_programs_are_never_decoded(read, tmp_path, monkeypatch):
    trap = tmp_path / "gs"  # in place of Ghostscript
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    buffer = io.BytesIO()
    Image.fromarray(COLOURS[..., :3].copy()).save(buffer, "EPS")
    with pytest.raises(ValueError, match="format"):
        read(buffer.getvalue())
    assert not (tmp_path / "started").exists()
    with contextlib.suppress(OSError):
        Image.open(buffer).load()
    assert (tmp_path / "started").exists()  # the trap was a working one


def with_exif(exif):
    return encode(COLOURS, "JPEG", "RGB")[:2] + b"\xff\xe1" + (len(exif) + 8).to_bytes(2, "big") + b"Exif\0\0" + exif


@pytest.mark.parametrize("content", [
    with_exif(b"II*\0\xff\xff\xff\xff" + bytes(40)) + encode(COLOURS, "JPEG", "RGB")[20:90],
    encode(COLOURS, "JPEG", "RGB")[:2] + b"\xff\xee\0\x08Adobe\0" + encode(COLOURS, "JPEG", "RGB")[2:200],
    encode(COLOURS, "PNG")[:16] + bytes(60), b"II*\0\x08\0\0\0" + bytes(range(200)), b"P6 9" * 9])
@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_whatever_pillow_raises_is_a_value_error_of_one_line(content, read):
    with pytest.raises(ValueError) as caught:
        read(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="^division"), open_image(encode(COLOURS)):
        raise ZeroDivisionError("division by zero")  # as from a decoder that trusts a header


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


def png_of_16_bits(values):
    """(h, w, c) uint16 as PNG; Pillow writes none of several channels."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks)


def ppm_of_16_bits(values):
    return b"P6 %d %d 65535\n" % values.shape[1::-1] + values[..., :3].astype(">u2").tobytes()


def tiff_of_16_bits(values):
    return cv2.imencode(".tiff", values[..., 2::-1])[1].tobytes()


@pytest.mark.parametrize("write", [png_of_16_bits, ppm_of_16_bits, tiff_of_16_bits])
def test_16_bits_in_three_equal_channels_give_the_pixels_of_one(write):
    counts = np.random.default_rng(0).integers(28_000, 33_000, (21, 34), dtype=np.uint16)
    expected = deep(counts, np.uint16, "PNG")
    content = write(np.stack([counts] * 3, axis=2))
    assert np.array_equal(decode_image(content), expected) and decode_pixels(content).shape == (21, 34)
    assert np.array_equal(deep_values(content), counts)


def test_16_bits_with_alpha_are_read_without_it():
    counts = np.random.default_rng(0).integers(28_000, 33_000, (21, 34), dtype=np.uint16)
    opaque = np.full_like(counts, 65_535)
    for channels in ([counts, opaque], [counts, counts, counts, opaque]):
        assert np.array_equal(decode_image(png_of_16_bits(np.stack(channels, axis=2))), deep(counts, np.uint16, "PNG"))


@pytest.mark.parametrize("write", [png_of_16_bits, ppm_of_16_bits, tiff_of_16_bits])
def test_16_bits_in_three_different_channels_are_stretched_together(write):
    counts = np.random.default_rng(0).integers(28_000, 33_000, (21, 34, 3), dtype=np.uint16)
    low, high = np.percentile(counts, (1, 99))
    expected = ((counts.astype(float) - low) / (high - low) * 255).clip(0, 255)
    pixels = decode_image(write(counts))
    assert np.abs(pixels - expected).max() <= 0.5 and np.array_equal(decode_pixels(write(counts))[..., :3], pixels)


def test_images_of_8_bits_have_no_deep_values():
    for kind, mode in (("PNG", "RGB"), ("BMP", "RGB"), ("JPEG", "L"), ("TIFF", "RGBA"), ("PPM", "RGB"), ("PNG", "P")):
        assert deep_values(encode(COLOURS, kind, mode)) is None


def test_an_even_surface_can_be_stretched():
    assert np.unique(deep(np.full((4, 5), 8000), np.uint16, "PNG")).size == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("order", "CF")
def test_masks_are_what_lies_above_0_in_any_type(dtype, order):
    values = np.asarray(np.random.default_rng(0).integers(0, 3, (6, 9)) * 85, dtype, order=order)
    mask = decode_mask(npy(values))
    assert mask.dtype == np.uint8 and np.array_equal(mask, (values > 0).astype(np.uint8))
    assert np.array_equal(decode_mask(memoryview(npy(values))), mask)


SQUARE = np.zeros((48, 64), np.uint8)
SQUARE[16:32, 16:40] = 1
BORDERED = np.zeros_like(SQUARE)
BORDERED[14:34, 14:42] = 255
BORDERED[SQUARE == 1] = 1


def palette(indices, colours, transparent=None):
    image = Image.fromarray(indices)
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({} if transparent is None else {"transparency": transparent}))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [
    encode(SQUARE), encode(SQUARE * 255), encode(SQUARE == 1), encode(SQUARE * 255, "PNG", "RGB"),
    encode(SQUARE.astype(np.uint16) * 300), encode(SQUARE.astype(np.float32), "TIFF"), encode(SQUARE * 255, "BMP"),
    encode(SQUARE * 255, "JPEG"), encode(SQUARE * 255, "JPEG", "RGB"), encode(SQUARE * 7, "GIF"),
    encode(np.stack([SQUARE * 3, SQUARE * 0, SQUARE * 9], axis=2)), tiff_of_16_bits(np.stack([SQUARE * 9] * 3, axis=2)),
    npy(SQUARE[None]), npy(SQUARE[..., None]), npy(np.asfortranarray(SQUARE)[..., None]), npy(SQUARE * 255.0)])
def test_masks_of_every_encoding_are_the_same(content):
    mask = read_mask(content)
    assert np.array_equal(mask.pixels, SQUARE) and mask.pixels.dtype == np.uint8 and not mask.note


@pytest.mark.parametrize("kind", ["npy", "PNG", "palette", "RGB", "float", "16 bits"])
@pytest.mark.parametrize("label", [1, 15])
def test_255_beside_labels_is_a_border_that_is_not_counted_and_noted(kind, label):
    labels = np.where(BORDERED == 1, label, BORDERED).astype(np.uint8)
    content = {"npy": npy(labels), "PNG": encode(labels), "palette": palette(labels, [9] * 768),
               "RGB": encode(labels, "PNG", "RGB"), "float": npy(labels.astype(np.float32)),
               "16 bits": encode(labels.astype(np.uint16))}[kind]
    mask = read_mask(content)
    assert np.array_equal(mask.pixels, SQUARE) and "border" in mask.note and f"up to {label}:" in mask.note


@pytest.mark.parametrize("values", [(0, 255), (255,), (0, 128, 255), (0, 200, 255), (0, 1, 254), (0, 40, 90, 255)])
def test_255_without_labels_belongs_to_the_mask(values):
    grey = np.resize(np.array(values, np.uint8), (30, 40))
    for content in (npy(grey), encode(grey)):
        assert np.array_equal(read_mask(content).pixels, grey > 0) and not read_mask(content).note


def test_a_palette_mask_is_read_by_its_indices_whatever_their_colours():
    for colours in ([70, 130, 180, 220, 20, 60], [255, 255, 255, 0, 0, 0], [0, 0, 0, 0, 0, 0]):
        assert np.array_equal(decode_mask(palette(SQUARE, colours + [0] * 762)), SQUARE)
        assert np.array_equal(decode_mask(palette(SQUARE, colours + [0] * 762, transparent=0)), SQUARE)


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_alpha_is_the_mask_where_the_colours_are_one(colour):
    grey = np.full_like(SQUARE, colour)
    mask = read_mask(encode(np.stack([grey, grey, grey, SQUARE * 255], axis=2)))
    assert np.array_equal(mask.pixels, SQUARE) and "alpha" in mask.note


def test_transparent_pixels_belong_to_no_object_unless_all_are_transparent():
    red_on_white = np.where(SQUARE[..., None] == 1, np.array([255, 0, 0, 255]), np.array([255, 255, 255, 0]))
    assert np.array_equal(decode_mask(encode(red_on_white.astype(np.uint8))), SQUARE)
    for alpha in (0, 255):
        whole = np.stack([SQUARE, SQUARE, SQUARE, np.full_like(SQUARE, alpha)], axis=2)
        assert np.array_equal(decode_mask(encode(whole)), SQUARE)


def test_a_mask_may_be_255_or_empty_throughout():
    assert decode_mask(npy(np.full((4, 5), 255, np.uint8))).all()
    assert not decode_mask(npy(np.zeros((4, 5), np.uint8))).any()
