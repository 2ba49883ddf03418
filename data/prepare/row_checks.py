"""One row of the MM-RIS schema: its problems, its statistics, and a small picture of it."""
import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..columns import FUSED, IMAGES, MASK, NO_WORDS, NULL
from ..decode import decode_image, read_mask
from ..pictures import oddities_of_pair, orientation

ERROR, WARNING = "error", "warning"  # a row that cannot be used; one to look at


class Problem(NamedTuple):
    severity: str  # ERROR or WARNING
    kind: str  # one word for programs
    column: str
    reason: str  # follows the column's name in a sentence


class CheckedRow(NamedTuple):
    """What is found in one row; None where a cell cannot be used."""

    problems: list[Problem]
    images: list[bytes | None]  # digests of the pixels: visible, infrared
    mask: bytes | None
    sizes: list[tuple[int, int] | None]  # (width, height): visible, infrared, mask
    area: float | None  # the object's share of the mask's pixels, 0 to 1
    words: int
    thumbnails: list[np.ndarray] | None  # visible and infrared (h, w, 3) uint8, mask (h, w) bool, as wide as asked for

    @property
    def usable(self) -> bool:
        return all(problem.severity != ERROR for problem in self.problems)


def check_row(cells: dict, thumbnail: int = 0, unusable: dict[str, str] | None = None) -> CheckedRow:
    """Look at everything in one row.

    Args:
        cells: the columns of the schema as Python values; `index` and `fused_image` may be missing.
        thumbnail: width in pixels, and greatest height, of `thumbnails`; 0: none. Unusable rows have none.
        unusable: columns whose cell is None because it cannot be used, and why.
    """
    unusable = unusable or {}
    problems = [Problem(ERROR, "damaged", column, unusable[column]) if column in unusable else
                Problem(ERROR, "null", column, NULL)
                for column, value in cells.items() if value is None and column != "index"]
    sentence = cells["question"]
    if sentence is not None and not sentence.strip():
        problems.append(Problem(ERROR, "expression", "question", NO_WORDS))
    pictures = [_decode_image(cells, column, problems) for column in IMAGES]
    fused = _decode_image(cells, FUSED, problems) if FUSED in cells else None
    mask = _decode_mask(cells, problems)
    problems += _oddities(cells, pictures, fused, mask)
    sizes = [array if array is None else array.shape[1::-1] for array in (*pictures, mask)]
    row = CheckedRow(problems, [_digest(picture) for picture in pictures], _digest(mask), sizes,
                     None if mask is None else float(mask.mean()), len((sentence or "").split()), None)
    if thumbnail and row.usable:
        row = row._replace(thumbnails=_thumbnails(pictures, mask, thumbnail))
    return row


def _oddities(cells: dict, pictures: list[np.ndarray | None], fused: np.ndarray | None, mask: np.ndarray | None
              ) -> list[Problem]:
    """Warnings about what can be used, but is probably not as it was meant."""
    problems = []
    for column, picture in zip((*IMAGES, FUSED), (*pictures, fused), strict=True):
        if picture is not None and orientation(cells[column]) != 1:
            problems.append(Problem(WARNING, "turned", column, "has an EXIF orientation, which training and evaluation "
                                                               "ignore"))
    visible, infrared = pictures
    for column, array in ((IMAGES[1], infrared), (FUSED, fused), (MASK, mask)):
        if visible is not None and array is not None and array.shape[:2] != visible.shape[:2]:
            problems.append(Problem(WARNING, "size", column, f"has {array.shape[1]} x {array.shape[0]} pixels, "
                                    f"visible_image has {visible.shape[1]} x {visible.shape[0]}"))
    if visible is not None and infrared is not None:
        problems += [Problem(WARNING, "pair", IMAGES[1], f"is odd: {oddity}")
                     for oddity in oddities_of_pair(visible, infrared)]
    if mask is not None and not mask.any():
        problems.append(Problem(WARNING, "empty_mask", MASK, "is an empty mask: no pixel is marked"))
    elif mask is not None and mask.all():
        problems.append(Problem(WARNING, "full_mask", MASK, "covers the whole image"))
    return problems


def _decode_image(cells: dict, column: str, problems: list[Problem]) -> np.ndarray | None:
    if cells[column] is None:
        return None
    try:
        return decode_image(cells[column])
    except ValueError as error:
        problems.append(Problem(ERROR, "damaged", column, f"cannot be decoded as an image: {error}"))
        return None


def _decode_mask(cells: dict, problems: list[Problem]) -> np.ndarray | None:
    if cells[MASK] is None:
        return None
    try:
        mask, note = read_mask(cells[MASK])
    except ValueError as error:
        problems.append(Problem(ERROR, "damaged", MASK, str(error)))
        return None
    if note:
        problems.append(Problem(WARNING, "mask", MASK, note))
    return mask


def _digest(array: np.ndarray | None) -> bytes | None:
    if array is None:
        return None
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _thumbnails(pictures: list[np.ndarray], mask: np.ndarray, side: int) -> list[np.ndarray]:
    height, width = pictures[0].shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [np.asarray(Image.fromarray(picture).resize(size)) for picture in pictures]
    small.append(np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)).astype(bool))
    margin = (side - size[0]) // 2, side - size[0] - (side - size[0]) // 2
    return [np.pad(array, [(0, 0), margin] + [(0, 0)] * (array.ndim - 2),
                   constant_values=255 if array.ndim == 3 else 0) for array in small]
