"""Masks from outlines and run lengths, as annotation tools store them."""
import math

import numpy as np
from pycocotools import mask as coco

FAR = 10  # a corner this many image sides outside is a mistake
LONGEST_OUTLINE = 2**22  # pixels; pycocotools needs some 100 bytes for each, and crashes where it gets none
LONGEST_COUNT = 7  # letters of a compressed count: 35 bits


def mask_from_polygon(value, height: int, width: int) -> np.ndarray:
    """Rasterise a polygon as COCO does; parts of it are united.

    Args:
        value: `[x1, y1, x2, y2, …]`, or `[[x1, y1], [x2, y2], …]`, or a list of either; pixels, (0, 0) the upper left.
    Returns:
        (height, width) uint8 of 0 and 1.
    Raises:
        ValueError: it is something else.
    """
    parts = _polygon_parts(value)
    for part in parts:
        if len(part) < 6 or len(part) % 2:
            raise ValueError("polygon must have three corners or more, each of an x and a y")
        if not all(math.isfinite(number) for number in part):
            raise ValueError("polygon has a coordinate that is no number")
        for numbers, side in ((part[::2], width), (part[1::2], height)):
            if (farthest := max(numbers, key=abs)) and abs(farthest) > FAR * max(side, 100):
                raise ValueError(f"polygon has the coordinate {farthest:g}, far outside the image of {width} x "
                                 f"{height} pixels")
    outline = sum(_length(part) for part in parts)
    if outline > LONGEST_OUTLINE + 2 * (height + width):
        raise ValueError(f"polygon has an outline of {outline:.0f} pixels, too long for an image of {width} x {height} "
                         "pixels")
    mask = coco.decode(coco.merge(coco.frPyObjects(parts, height, width)))
    if not mask.any():
        raise ValueError(f"polygon covers no pixel of the image of {width} x {height} pixels")
    return mask


def _length(part: list[float]) -> float:
    corners = np.reshape(part, (-1, 2))
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _polygon_parts(value) -> list[list[float]]:
    def numbers(items) -> bool:
        return isinstance(items, list) and all(isinstance(item, int | float) for item in items)

    def pairs(items) -> bool:
        return isinstance(items, list) and all(numbers(item) and len(item) == 2 for item in items)

    if numbers(value) or pairs(value):
        value = [value]
    if isinstance(value, list) and all(numbers(part) or pairs(part) for part in value):
        try:
            return [[float(number) for corner in part for number in corner] if pairs(part) else list(map(float, part))
                    for part in value]
        except OverflowError as error:  # JSON may spell whole numbers of any length
            raise ValueError("polygon has a coordinate of hundreds of digits") from error
    raise ValueError("polygon must be a list of coordinates, as in [10, 10, 50, 10, 50, 40]")


def mask_from_rle(value, height: int, width: int) -> np.ndarray:
    """Unpack a COCO run-length encoding.

    Args:
        value: `{"size": [height, width], "counts": …}`, the counts compressed (text) or not (a list).
    Returns:
        (height, width) uint8 of 0 and 1.
    Raises:
        ValueError: it is something else, or of another size.
    """
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise ValueError('rle must be {"size": [height, width], "counts": text or list}')
    if value.get("size") != [height, width]:
        raise ValueError(f"rle has the size {str(value.get('size'))[:100]} (height, width), the image is {height} high "
                         f"and {width} wide")
    counts = value["counts"]
    if isinstance(counts, str):
        counts = _unpack_counts(counts)
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"rle has counts that do not add up to {height} x {width} pixels")
    return coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _unpack_counts(text: str) -> list[int]:
    """COCO's compressed counts as numbers; pycocotools does not check them, and reads memory that is not theirs.

    A letter holds five bits, the lowest first, and whether more follow; the last one's highest bit is the sign. From
    the fourth on, a number is the difference to the one before the last.
    """
    counts, number, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"rle has counts with the letter {letter!r}")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << 1 << (shift - 5)
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number, shift = 0, 0
        elif shift >= 5 * LONGEST_COUNT:
            raise ValueError("rle has a count that is too large")
    if shift:
        raise ValueError("rle has counts that are cut short")
    return counts
