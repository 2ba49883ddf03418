"""What can be said of one row of the MM-RIS schema by looking at it: facts, problems, and a small picture of it."""
import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..columns import IMAGES, MASK, NO_WORDS, NULL
from ..decode import decode_image, decode_mask

ERROR, WARNING = "error", "warning"  # a row that cannot be used; one to look at
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Problem(NamedTuple):
    severity: str  # ERROR or WARNING
    kind: str  # one word for programs
    column: str
    reason: str  # follows the column's name in a sentence


class Facts(NamedTuple):
    """Of one row; None where a cell cannot be used."""

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


def check_row(cells: dict, thumbnail: int = 0, unusable: dict[str, str] | None = None) -> Facts:
    """Look at everything in one row.

    Args:
        cells: the columns of the schema as Python values; `index` may be missing.
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
    pictures = [_decode(cells, column, decode_image, problems) for column in IMAGES]
    mask = _decode(cells, "segmentation", decode_mask, problems)
    for column, picture in zip(IMAGES, pictures, strict=True):
        if picture is not None and marked_as_turned(cells[column]):
            problems.append(Problem(WARNING, "turned", column,
                                    "has an EXIF note that says to turn it, which readers of these files do not do"))
    decoded = [*pictures, mask]
    sizes = [array if array is None else array.shape[1::-1] for array in decoded]
    for column, size in zip((IMAGES[1], MASK), sizes[1:], strict=True):
        if sizes[0] and size and size != sizes[0]:
            problems.append(Problem(WARNING, "size", column, f"has {size[0]} x {size[1]} pixels, visible_image has "
                                                             f"{sizes[0][0]} x {sizes[0][1]}"))
    if mask is not None and not mask.any():
        problems.append(Problem(WARNING, "empty_mask", "segmentation", "is an empty mask: no pixel is marked"))
    facts = Facts(problems, [_digest(picture) for picture in pictures], _digest(mask), sizes,
                  None if mask is None else float(mask.mean()), len((sentence or "").split()), None)
    if thumbnail and facts.usable:
        facts = facts._replace(thumbnails=_thumbnails(pictures, mask, thumbnail))
    return facts


def marked_as_turned(content: bytes) -> bool:
    """Does an EXIF note in this image file ask to show it turned or mirrored?"""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # notes are damaged in as many ways as images; such a note asks for nothing
        return False


def _decode(cells: dict, column: str, decode, problems: list[Problem]) -> np.ndarray | None:
    if cells[column] is None:
        return None
    try:
        return decode(cells[column])
    except ValueError as error:
        what = "" if decode is decode_mask else "cannot be decoded as an image: "
        problems.append(Problem(ERROR, "damaged", column, f"{what}{error}"))
        return None


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
