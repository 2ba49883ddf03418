"""Encoded bytes to arrays: images as 8-bit RGB, masks as 0 and 1. Knows nothing of files, rows or columns."""
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from utils.sizes import MAX_PIXELS

TOO_LARGE = "it has more than {} pixels, as decompression bombs do"
STRETCH = (1.0, 99.0)  # percentiles that become black and white when values are beyond 8 bits
START_OF_JPEG = b"\xff\xd8"
LONGEST_HEADER = 2**16 + 16  # bytes, of a .npy file
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0}  # later versions: read_array_header_2_0


def decode_image(content: bytes, max_pixels: int | None = None) -> np.ndarray:
    """An encoded image as RGB.

    Images of 8 bits, whether grey, palette, RGB, RGBA (the alpha is dropped) or CMYK, are what Pillow's
    `convert("RGB")` makes of them. Grey images of more bits, which that would clip to white, go through `to_uint8`.
    An EXIF orientation is not followed, as in Pillow and in the published numbers: infrared image and mask carry no
    such note, and only the pixels as they are stored lie above each other. Of an animation, the first picture.

    Args:
        content: the bytes of a file in any format that Pillow reads; a memoryview will do.
        max_pixels: width times height; None: MAX_PIXELS.
    Returns:
        (h, w, 3) uint8, 0 to 255.
    Raises:
        ValueError: no image, or a damaged one, or one of more than `max_pixels`; says which in a few words.
    """
    pixels = _decode(content, "RGB", max_pixels=max_pixels)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def decode_pixels(content: bytes, memory: np.ndarray | None = None) -> np.ndarray:
    """`decode_image` in the form that costs least to make and to resize.

    Args:
        content: as above.
        memory: an earlier result that is no longer needed; used again if it fits.
    Returns:
        uint8, (h, w) for an image stored as grey, else (h, w, 4): RGB, and a channel of any content.
    Raises:
        ValueError: as above.
    """
    return _decode(content, "RGBX", memory)


def decode_lumas(visible: bytes, infrared: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The luma of a pair at the visible image's size, to which an infrared image of another size is resized bilinearly.

    Args:
        visible, infrared: as for `decode_image`.
    Returns:
        Two (h, w) uint8.
    Raises:
        ValueError: as `decode_image`.
    """
    pair = [Image.fromarray(decode_image(content)).convert("L") for content in (visible, infrared)]
    if pair[1].size != pair[0].size:
        pair[1] = pair[1].resize(pair[0].size, Image.Resampling.BILINEAR)
    return np.asarray(pair[0]), np.asarray(pair[1])


def _decode(content: bytes, mode: str, memory: np.ndarray | None = None, max_pixels: int | None = None) -> np.ndarray:
    """(h, w) grey, or (h, w, 3 or 4) for the mode "RGB" or "RGBX"."""
    max_pixels = max_pixels or MAX_PIXELS
    if not len(content):
        raise ValueError("there are 0 bytes")
    pixels = _decode_jpeg(content, mode, memory, max_pixels)
    if pixels is not None:
        return pixels
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = max_pixels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on transparency, metadata and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.mode == "F" or image.mode.startswith("I"):
                return to_uint8(np.asarray(image))
            if image.mode == "L":
                return np.array(image)
            return np.array(image.convert("RGB").convert(mode))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(TOO_LARGE.format(max_pixels)) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError("its format is not known") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
        raise ValueError(_reason(error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode_jpeg(content: bytes, mode: str, memory: np.ndarray | None, max_pixels: int) -> np.ndarray | None:
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
        raise ValueError(TOO_LARGE.format(max_pixels))
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
    """Grey values of any range in 8 bits.

    What fits is kept: integers within 0 … 255 as they are, floats within 0 … 1 times 255. Anything else, such as the
    14-bit counts of a thermal camera, is stretched so that its 1st percentile becomes 0 and its 99th 255.

    Args:
        pixels: (h, w), integers or floats.
    Returns:
        (h, w) uint8.
    Raises:
        ValueError: infinite values or NaN among them.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("some of its pixels are infinite or NaN")
    pixels = pixels.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    fractions = (pixels % 1).any()
    if fractions and low >= 0 and high <= 1:
        pixels = pixels * 255
    elif fractions or low < 0 or high > 255:
        low, high = np.percentile(pixels, STRETCH)
        pixels = (pixels - low) * (255 / (high - low) if high > low else 1)
    return pixels.clip(0, 255).round().astype(np.uint8)


def decode_mask(content: bytes) -> np.ndarray:
    """A segmentation, the bytes of a `.npy` file with a (h, w) array of booleans, integers or floats.

    Returns:
        (h, w) uint8, 1 where the array is above 0 (255s and True alike), else 0. It may be 0 throughout.
    Raises:
        ValueError: not such an array. A pickle inside is never opened.
    """
    # Not np.load, which also accepts archives and pickles, the latter able to run code.
    stream = io.BytesIO(content[:LONGEST_HEADER])
    try:
        read_header = NPY_HEADERS.get(np.lib.format.read_magic(stream), np.lib.format.read_array_header_2_0)
        shape, by_columns, dtype = read_header(stream)
    except Exception as error:  # whatever numpy meets in bytes that are something else
        raise ValueError(f"is not a .npy array of numbers ({_reason(error)})") from error
    if dtype.hasobject:
        raise ValueError("is not a .npy array of numbers but holds a pickle, which is never opened")
    if len(shape) != 2 or min(shape) < 1 or dtype.kind not in "buif":
        raise ValueError(f"must be a (height, width) array of numbers, not {dtype} {shape}")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"has more than {MAX_PIXELS} pixels")
    if shape[0] * shape[1] * dtype.itemsize > len(content) - stream.tell():
        raise ValueError(f"is not a .npy array of numbers, or is cut short: {len(content)} bytes for {dtype} {shape}")
    values = np.frombuffer(content, dtype, shape[0] * shape[1], stream.tell())
    return np.ascontiguousarray((values > 0).view(np.uint8).reshape(shape, order="F" if by_columns else "C"))


def _reason(error: Exception) -> str:
    """What `error` says, cut to one line without its final full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
