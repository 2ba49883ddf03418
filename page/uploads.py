"""Picture files that visitors give: found on the disk, checked at once, and shown though browsers may not know them."""
import os
from typing import Any, NamedTuple

from data.pictures import read_picture
from evaluation.results import encode_png
from utils.draw import resize
from utils.errors import InputError
from utils.files import replacing

from .answers import in_words

SHOWN = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")  # by browsers
PREVIEW = ".preview.png"  # behind the name of the file that it stands for, in the same folder
PREVIEW_SIDE = 1024  # pixels


class Checked(NamedTuple):
    """A file that was found to be a picture."""

    preview: str | None  # 8-bit PNG to show instead of the file; None: the file itself can be shown
    note: str            # how values of more than 8 bits are scaled; empty if they are not


def uploaded_file(data: Any, folder: str) -> str | None:
    """The path of the file that an image field holds; for a preview, of the file that it stands for.

    Args:
        data: what the browser sent: None, or a dict with the `path` that it was told after uploading.
        folder: where uploads are.
    Raises:
        InputError: the path is not in `folder`, so that a forged one shows nothing else of this machine.
    """
    if data is None:
        return None
    path = data.get("path") if isinstance(data, dict) else None
    path = os.path.realpath(path) if isinstance(path, str) and "\0" not in path else ""
    if not path.startswith(os.path.join(os.path.realpath(folder), "")):
        raise InputError("Pictures are given by dropping, pasting or choosing a file.")
    original = path.removesuffix(PREVIEW)
    return original if os.path.isfile(original) else path


def check(path: str, max_pixels: int) -> Checked:
    """Read a file as predict.py does, and write a preview beside it if a browser would show nothing or near black.

    Raises:
        InputError: it is no picture, or too large.
    """
    with in_words(path):
        picture = read_picture(path, max_pixels)
    if path.lower().endswith(SHOWN) and not picture.note:
        return Checked(None, "")
    height, width = picture.pixels.shape[:2]
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    with replacing(path + PREVIEW, durable=False) as temporary, open(temporary, "wb") as file:
        file.write(encode_png(resize(picture.pixels, size)))
    return Checked(path + PREVIEW, picture.note)
