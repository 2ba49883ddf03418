"""Files with more than 8 bits per channel, as thermal cameras write them: images, and arrays of NumPy."""
import io
import math

import cv2
import numpy as np
from PIL import Image

from utils.text import first_line


def deep_values(image: Image.Image, content: bytes) -> np.ndarray | None:
    """The values of an image file that has more than 8 bits per channel.

    Pillow decodes a single channel of 16 or 32 bits as it is, but reduces several channels to 8 bits each, in which
    little is left of thermal counts that span a small part of the range. Those are decoded by OpenCV.

    Args:
        image: opened by Pillow; for a single channel, its pixels are read.
        content: the bytes of the same file.
    Returns:
        (h, w) integers or floats for a grey image, also one stored as three equal channels; (h, w, 3) or (h, w, 4)
        integers for RGB, the fourth channel being whatever the file holds; None for 8 bits per channel.
    Raises:
        ValueError: it is damaged. (Pillow raises further kinds of errors while it reads the pixels.)
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    if not _has_deep_channels(image):
        return None
    try:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError("its 16-bit channels cannot be decoded") from error
    if values is None or values.ndim != 3 or values.shape[2] not in (3, 4) or values.dtype == np.uint8:
        return None
    grey = (values[..., 1:3] == values[..., :1]).all()
    if grey and (values.shape[2] == 3 or values[..., 3].min() == values[..., 3].max()):
        return values[..., 0]
    return values[..., [2, 1, 0, 3][: values.shape[2]]]  # OpenCV has blue first


def _has_deep_channels(image: Image.Image) -> bool:
    """Whether a colour file has more than 8 bits per channel, from how Pillow is going to unpack it."""
    for tile in getattr(image, "tile", []):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(";16" in str(argument) for argument in arguments[:1]):
            return True
        if tile[0] == "ppm" and len(arguments) > 1 and isinstance(arguments[1], int) and arguments[1] > 255:
            return True
    return False


def read_npy(content: bytes) -> np.ndarray:
    """The array in a `.npy` file.

    Returns:
        An array of numbers of any shape, without dimensions of length 1 in front of the last two.
    Raises:
        ValueError: it is something else, or cut short. A pickle inside is never opened.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
    except Exception as error:  # whatever NumPy meets in bytes that are something else
        raise ValueError(f"this is not a .npy array of numbers ({first_line(error)})") from error
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError(f"a .npy array must hold numbers, not {dtype}")
    sound = shape and all(type(side) is int and side > 0 for side in shape)
    if not sound or math.prod(shape) * dtype.itemsize > len(content) - stream.tell():
        raise ValueError(f"this .npy array is empty or cut short: {len(content)} bytes for {dtype} {shape}")
    values = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    values = values.reshape(shape, order="F" if by_columns else "C")
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    return values
