"""Arrays in `.npy` files, read without ever opening a pickle."""
import io
import math
import warnings

import numpy as np

from utils.text import first_line

LONGEST_HEADER = 2**16 + 16  # bytes
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0}  # later versions: read_array_header_2_0
NO_ARRAY = "is not a .npy array of numbers"


def read_npy(content: bytes) -> np.ndarray:
    """The array in the bytes of a `.npy` file, over the same memory.

    Returns:
        Booleans, integers or floats of any shape with at least one element.
    Raises:
        ValueError: it is something else, or cut short; the message follows a name.
    """
    # Not np.load, which also accepts archives and pickles, the latter able to run code.
    stream = io.BytesIO(content[:LONGEST_HEADER])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on headers that Python 2 wrote
            shape, by_columns, dtype = HEADERS.get(np.lib.format.read_magic(stream),
                                                   np.lib.format.read_array_header_2_0)(stream)
    except Exception as error:  # whatever numpy raises for bytes that are something else
        raise ValueError(f"{NO_ARRAY} ({first_line(error)})") from error
    if dtype.hasobject:
        raise ValueError(f"{NO_ARRAY} but holds a pickle, which is never opened")
    if dtype.kind not in "buif" or not shape or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"must hold an array of numbers with a height and a width, not {described(dtype, shape)}")
    if math.prod(shape) * dtype.itemsize > len(content) - stream.tell():
        raise ValueError(f"{NO_ARRAY}, or is cut short: {len(content)} bytes for {described(dtype, shape)}")
    values = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    return values.reshape(shape, order="F" if by_columns else "C")


def described(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Type and shape for a message."""
    text = f"{dtype} {shape}"
    return text if len(text) < 100 else f"{text[:100]}…"
