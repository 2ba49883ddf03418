"""People's own pictures: files, NumPy arrays and PIL images as 8-bit RGB, and pairs of them by name."""
import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError, UsageError

from .decode import STRETCH, decode_image, to_uint8

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Picture(NamedTuple):
    pixels: np.ndarray  # (h, w, 3) uint8 RGB, upright
    note: str           # how values of more than 8 bits were scaled; empty if they were not


class PairOfFiles(NamedTuple):
    name: str  # the visible file's, without its suffix
    visible: str
    infrared: str


def read_picture(path: str, max_pixels: int | None = None) -> Picture:
    """An image file as RGB, turned as its EXIF orientation says.

    Args:
        max_pixels: as for `decode_image`.
    Raises:
        InputError: it cannot be read; the message names it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    try:
        pixels = decode_image(content, max_pixels)
    except ValueError as error:
        raise InputError(f"{path} cannot be decoded as an image: {error}") from error
    stored = Image.open(io.BytesIO(content))  # for what the pixels do not tell; beyond 8 bits, also for their values
    upright = Image.fromarray(pixels)
    upright.getexif()[Image.ExifTags.Base.Orientation] = stored.getexif().get(Image.ExifTags.Base.Orientation, 1)
    note = _note(np.asarray(stored)) if _is_deep(stored) else ""
    return Picture(np.asarray(ImageOps.exif_transpose(upright)), note)


def to_picture(image) -> Picture:
    """A PIL image of any mode, turned as its EXIF orientation says, or a NumPy array as RGB.

    Args:
        image: arrays are (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), the fourth channel being dropped. Whole numbers
            within 0 … 255 are kept, floats within 0 … 1 multiplied by 255; anything else is stretched from its 1st to
            its 99th percentile, and noted.
    Raises:
        ValueError: neither of the two, another shape, no pixels, or NaN and infinity among them.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if not _is_deep(image):
            return Picture(np.asarray(image.convert("RGB")), "")
    elif not isinstance(image, np.ndarray):
        raise ValueError(f"an image must be a NumPy array or a PIL image, not {type(image).__name__}")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size or array.dtype.kind not in "buif":
        raise ValueError("an image must be an array of numbers of shape (height, width), or with 1, 3 or 4 channels "
                         f"behind, not {np.asarray(image).dtype} {np.asarray(image).shape}")
    array = array[..., :3]
    pixels, note = array, ""
    if array.dtype == bool:
        pixels = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        pixels = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        pixels, note = to_uint8(array), _note(array)
    return Picture(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), note)


def _is_deep(image: Image.Image) -> bool:
    """Whether the mode holds more than 8 bits a pixel, as those of thermal cameras do."""
    return image.mode == "F" or image.mode.startswith("I")


def _note(values: np.ndarray) -> str:
    """What `to_uint8` does to finite `values`, for people; empty if it keeps them."""
    lowest, highest = values.min(), values.max()
    if lowest >= 0 and (highest <= 1 or (highest <= 255 and not (values % 1).any())):
        return ""
    low, high = np.percentile(values, STRETCH)
    return (f"{values.dtype} values from {lowest:g} to {highest:g} scaled to 8 bits: {low:g} (percentile "
            f"{STRETCH[0]:g}) became 0, {high:g} (percentile {STRETCH[1]:g}) became 255")


def pair_files(visible: str, infrared: str) -> tuple[list[PairOfFiles], list[str]]:
    """Files that belong together.

    Args:
        visible, infrared: both files, which are a pair whatever their names, or both folders, in which a pair is two
            image files of the same name, whatever the suffixes.
    Returns:
        The pairs by name, and the paths of the image files that have no partner.
    Raises:
        UsageError: a path is not there, or one is a file and the other a folder.
        InputError: there is no pair, or two files of one folder share a name.
    """
    for argument, path in (("visible", visible), ("infrared", infrared)):
        if not os.path.exists(path):
            raise UsageError(f"there is no file or folder {path!r}", argument)
    if os.path.isdir(visible) != os.path.isdir(infrared):
        raise UsageError("both must be files or both folders, not one of each: "
                         f"{visible!r}, {infrared!r}", "visible, infrared")
    if not os.path.isdir(visible):
        return [PairOfFiles(_stem(visible), visible, infrared)], []
    folders = _by_name(visible), _by_name(infrared)
    names = sorted(folders[0].keys() & folders[1].keys())
    alone = [folder[name] for folder in folders for name in sorted(folder.keys() - set(names))]
    if not names:
        raise InputError(f"no image in {visible} ({len(folders[0])} found) has the name of one in {infrared} "
                         f"({len(folders[1])} found), suffixes aside; known suffixes are {' '.join(SUFFIXES)}")
    return [PairOfFiles(name, folders[0][name], folders[1][name]) for name in names], alone


def _by_name(folder: str) -> dict[str, str]:
    try:
        files = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: it cannot be read ({error.strerror})") from error
    paths: dict[str, str] = {}
    for file in files:
        if file.startswith(".") or not file.lower().endswith(SUFFIXES):
            continue
        path = os.path.join(folder, file)
        other = paths.setdefault(_stem(file), path)
        if other != path:
            raise InputError(f"{other} and {path} share a name, so it is unclear which of them is meant; remove one")
    return paths


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
