"""Encoded bytes to arrays: images as 8-bit RGB, masks as 0 and 1. Knows nothing of files, rows or columns."""
import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from utils.sizes import MAX_PIXELS
from utils.text import first_line

from .npy import described, read_npy

# Pillow's plugins that decode by themselves. Others start programs (EPS: Ghostscript) or call what is registered.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
STRETCH = (1.0, 99.0)  # percentiles that become black and white when values exceed 8 bits
START_OF_JPEG = b"\xff\xd8"
START_OF_NPY = b"\x93NUMPY"
BORDER = 255  # marks pixels that belong to no object in label masks, as in PASCAL VOC
MOST_LABELS = 20  # labels beside which BORDER is a border; PASCAL VOC has 20 classes

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a damaged image would leave lines on stderr


@contextlib.contextmanager
def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an encoded image by Pillow. The only way in which this project opens one.

    Args:
        content: the bytes of a file in one of FORMATS; a memoryview will do.
        max_pixels: width times height; more is refused before anything is decoded.
    Raises:
        ValueError: another format, a damaged image or one that is too large; also in place of whatever Pillow raises
            inside the `with` block. Says which in a few words.
    """
    if not len(content):
        raise ValueError("there are 0 bytes")
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on transparency, metadata and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = max_pixels
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(_too_large(max_pixels)) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError("its format is not known, or not one that is read") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
        raise ValueError(first_line(error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _too_large(max_pixels: int) -> str:
    return f"it has more than {max_pixels} pixels, the limit"


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image as RGB.

    Images of 8 bits, whether grey, palette, RGB, RGBA (the alpha is dropped) or CMYK, are what Pillow's
    `convert("RGB")` makes of them. Images of more bits in one or several channels, which that would clip to white or
    cut to their upper bits, go through `to_uint8`.
    An EXIF orientation is not followed, as in Pillow and in the published numbers: infrared image and mask carry no
    such note, and only the pixels as they are stored lie above each other. Of an animation, the first picture.

    Args:
        content, max_pixels: as for `open_image`.
    Returns:
        (h, w, 3) uint8, 0 to 255.
    Raises:
        ValueError: as `open_image`.
    """
    pixels = _decode(content, "RGB", max_pixels)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def decode_pixels(content: bytes, memory: np.ndarray | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`decode_image` in the form that costs least to make and to resize.

    Args:
        content, max_pixels: as for `open_image`.
        memory: an earlier result that is no longer needed; used again if it fits.
    Returns:
        uint8, (h, w) for an image stored as grey, else (h, w, 4): RGB, and a channel of any content.
    Raises:
        ValueError: as `open_image`.
    """
    return _decode(content, "RGBX", max_pixels, memory)


def decode_lumas(visible: bytes, infrared: bytes) -> tuple[np.ndarray, np.ndarray]:
    """`to_lumas` of two images as for `decode_image`, whose ValueError it raises."""
    return to_lumas(decode_image(visible), decode_image(infrared))


def decode_luma(content: bytes) -> np.ndarray:
    """The luma, (h, w) uint8, of an image as for `decode_image`, whose ValueError it raises."""
    return np.asarray(Image.fromarray(decode_image(content)).convert("L"))


def to_lumas(visible: np.ndarray, infrared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The luma of a pair at the visible image's size, to which an infrared image of another size is resized bilinearly.

    Args:
        visible, infrared: (h, w, 3) uint8 RGB, each of its own size.
    Returns:
        Two (h, w) uint8.
    """
    pair = [Image.fromarray(pixels).convert("L") for pixels in (visible, infrared)]
    if pair[1].size != pair[0].size:
        pair[1] = pair[1].resize(pair[0].size, Image.Resampling.BILINEAR)
    return np.asarray(pair[0]), np.asarray(pair[1])


def as_pictures(visible: np.ndarray, infrared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair as RGB at the visible image's size, to which an infrared image of another size is resized bilinearly.

    Args:
        visible, infrared: uint8 as of `decode_pixels`, each of its own size.
    Returns:
        Two (h, w, 3) uint8, copies.
    """
    pair = [Image.fromarray(pixels[..., :3].copy() if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))
            for pixels in (visible, infrared)]
    if pair[1].size != pair[0].size:
        pair[1] = pair[1].resize(pair[0].size, Image.Resampling.BILINEAR)
    return np.asarray(pair[0]), np.asarray(pair[1])


def deep_values(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """The values of an image that stores more than 8 bits a channel, as thermal cameras do; None for any other image.

    Args:
        content, max_pixels: as for `open_image`.
    Returns:
        (h, w), or (h, w, 3) where the channels differ: integers or floats. An alpha channel is dropped.
    Raises:
        ValueError: as `open_image`.
    """
    with open_image(content, max_pixels) as image:
        return _deep_values(image, content)


def _deep_values(image: Image.Image, content: bytes) -> np.ndarray | None:
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    modes = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in getattr(image, "tile", ())]
    deep = any(image.format in ("PNG", "TIFF") and ";16" in str(arguments[0]) or
               image.format == "PPM" and isinstance(arguments[-1], int) and arguments[-1] > 255 for arguments in modes)
    if not deep:
        return None
    # Pillow would keep the upper 8 of 16 bits in images of several channels.
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.shape[:2] != image.size[::-1] or values.dtype == np.uint8:
        raise ValueError("its channels of 16 bits cannot be decoded")
    if values.ndim == 3:
        values = values[..., 2::-1]  # OpenCV has blue first
        values = values[..., 0] if (values == values[..., :1]).all() else values
    return np.ascontiguousarray(values)


def _decode(content: bytes, mode: str, max_pixels: int, memory: np.ndarray | None = None) -> np.ndarray:
    """(h, w) grey, or (h, w, 3 or 4) for the mode "RGB" or "RGBX"."""
    pixels = _decode_jpeg(content, mode, max_pixels, memory)
    if pixels is not None:
        return pixels
    with open_image(content, max_pixels) as image:
        values = _deep_values(image, content)
        if values is not None:
            pixels = to_uint8(values)
            return cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA) if pixels.ndim == 3 and mode == "RGBX" else pixels
        if image.mode == "L":
            return np.array(image)
        return np.array(image.convert("RGB").convert(mode))


def _decode_jpeg(content: bytes, mode: str, max_pixels: int, memory: np.ndarray | None) -> np.ndarray | None:
    """What Pillow would make of a flawless JPEG, by the same libjpeg-turbo; None for anything else."""
    if bytes(content[:2]) != START_OF_JPEG:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    if space not in ("Gray", "YCbCr", "RGB"):
        return None
    if height * width > max_pixels:
        raise ValueError(_too_large(max_pixels))
    grey = space == "Gray"
    shape = (height, width, 1 if grey else len(mode))
    if memory is None or memory.size != height * width * shape[2]:
        memory = np.empty(shape, np.uint8)
    try:
        pixels = simplejpeg.decode_jpeg(
            content, "GRAY" if grey else mode, fastdct=False, fastupsample=False, buffer=memory)
    except ValueError:
        return None
    return pixels[..., 0] if grey else pixels


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Values of any range in 8 bits.

    What fits is kept: integers within 0 … 255 as they are, floats within 0 … 1 times 255. Anything else, such as the
    14-bit counts of a thermal camera, is stretched so that its 1st percentile becomes 0 and its 99th 255, over all
    channels together.

    Args:
        pixels: of any shape, integers or floats.
    Returns:
        uint8 of that shape.
    Raises:
        ValueError: infinite values or NaN among them.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("some of its pixels are infinite or NaN")
    low, high = pixels.min(), pixels.max()
    whole = pixels.dtype.kind in "bui"
    if whole and low >= 0 and high <= 255:
        return pixels.astype(np.uint8)
    pixels = pixels.astype(np.float64)
    fractions = not whole and (pixels % 1).any()
    if fractions and low >= 0 and high <= 1:
        pixels = pixels * 255
    elif fractions or low < 0 or high > 255:
        low, high = np.percentile(pixels, STRETCH)
        pixels = (pixels - low) * (255 / (high - low) if high > low else 1)
    return pixels.clip(0, 255).round().astype(np.uint8)


class Mask(NamedTuple):
    """A decoded segmentation."""

    pixels: np.ndarray  # (h, w) uint8, 1 on the object, 0 elsewhere; may be 0 or 1 throughout
    note: str           # what was left out or where the mask was found, if not as usual; follows a name


def read_mask(content: bytes, max_pixels: int = MAX_PIXELS) -> Mask:
    """A segmentation: the bytes of a `.npy` file, or of an image in one of FORMATS.

    A `.npy` file holds booleans, integers or floats, (h, w), (1, h, w) or (h, w, 1). Whatever is above 0 belongs to the
    object, 255s and True alike, in an image in any of its channels, with these exceptions:
    - 255 beside other labels up to MOST_LABELS marks the borders of objects and is not counted.
    - A palette image is read by its indices, whatever colours they have.
    - Fully transparent pixels belong to no object. If alpha differs where all colours are the same, alpha is the mask.
    - In lossy formats, which blur edges, only what is above 127 belongs to the object.

    Raises:
        ValueError: neither of the two, or too large; the message follows the column's or file's name. A pickle inside
            is never opened.
    """
    if bytes(content[:len(START_OF_NPY)]) == START_OF_NPY:
        return _mask_of_labels(_read_npy(content, max_pixels))
    try:
        return _read_mask_image(content, max_pixels)
    except ValueError as error:
        raise ValueError(f"is not a .npy array of numbers, nor an image that can be decoded ({error})") from error


def _read_npy(content: bytes, max_pixels: int) -> np.ndarray:
    """(h, w) booleans, integers or floats."""
    values = read_npy(content)
    shape = _without_channel(values.shape)
    if len(shape) != 2:
        raise ValueError(f"must be a (height, width) array of numbers, not {described(values.dtype, values.shape)}")
    if values.size > max_pixels:
        raise ValueError(f"has more than {max_pixels} pixels")
    return values.reshape(shape)


def _without_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(h, w) of (h, w, 1) and (1, h, w)."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        return shape[:2] if shape[2] == 1 else shape[1:]
    return shape


def _read_mask_image(content: bytes, max_pixels: int) -> Mask:
    with open_image(content, max_pixels) as image:
        values = _deep_values(image, content)
        if values is None and image.mode in ("P", "PA"):
            indices = np.asarray(image)
            values = indices if indices.ndim == 2 else indices[..., 0]
        if values is not None:
            return _mask_of_labels(values)
        lossy = image.format in ("JPEG", "MPO", "AVIF") or image.format == "WEBP" and b"VP8L" not in bytes(content[:64])
        grey = image.mode in ("1", "L")
        channels = np.asarray(image if grey else image.convert("RGBA"))
    if grey:
        return Mask((channels > 127).astype(np.uint8), "") if lossy else _mask_of_labels(channels)
    colours, alpha = channels[..., :3], channels[..., 3]
    if alpha.min() < alpha.max() and (colours == colours[0, 0]).all():
        return Mask((alpha > 0).astype(np.uint8), "is one colour throughout, so its alpha channel is the mask")
    if alpha.any():
        colours = colours * (alpha > 0)[..., None]
    if lossy:
        return Mask((colours > 127).any(axis=2).astype(np.uint8), "")
    return _mask_of_labels(colours[..., 0] if (colours == colours[..., :1]).all() else colours.any(axis=2))


def _mask_of_labels(labels: np.ndarray) -> Mask:
    """What is above 0 in (h, w) or (h, w, 3) booleans, integers or floats, without a border."""
    objects = labels > 0 if labels.ndim == 2 else (labels > 0).any(axis=2)
    note = ""
    border = labels == BORDER
    if labels.ndim == 2 and border.any():
        others = labels[objects & ~border]
        if others.size and others.max() <= MOST_LABELS:
            objects &= ~border
            note = f"has the value {BORDER} beside labels up to {others.max():g}: a border, which is not counted"
    return Mask(np.ascontiguousarray(objects).view(np.uint8), note)
