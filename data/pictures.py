"""People's own pictures: files, NumPy arrays and PIL images as 8-bit RGB, and pairs of files by their names."""
import logging
import os
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from utils.errors import InputError, UsageError
from utils.sizes import MAX_PIXELS
from utils.text import printable

from .decode import STRETCH, decode_image, deep_values, open_image, to_uint8
from .npy import read_npy
from .pairing import INFRARED_WORDS, VISIBLE_WORDS, match_names, stem, words_of

SUFFIXES = (".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pbm", ".pcx", ".pfm",
            ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp")
COLOURED, COLOURED_SHARE = 24, 0.1  # of 255 between a pixel's channels; share of such pixels in a false-colour image

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    pixels: np.ndarray  # (h, w, 3) uint8 RGB, upright
    note: str           # how values of more than 8 bits were scaled; empty if they were not


class PairOfFiles(NamedTuple):
    name: str  # the visible file's path within its folder, without its suffix
    visible: str
    infrared: str


def read_picture(path: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """An image file, or a `.npy` file with an array as for `to_picture`, as RGB; turned as its EXIF orientation says.

    Args:
        max_pixels: width times height; a larger image is refused.
    Raises:
        InputError: it cannot be read; the message names it.
    """
    return _decoded(path, _content(path), max_pixels)


def read_pair(visible: str, infrared: str, max_pixels: int = MAX_PIXELS) -> tuple[Picture, Picture]:
    """A visible and an infrared image file. A file of four channels given as both holds both: RGB, then infrared.

    Args:
        max_pixels: as for `read_picture`.
    Raises:
        InputError: one cannot be read; the message names it.
    """
    contents = _content(visible), _content(infrared)
    if contents[0] == contents[1]:
        fourth = _fourth_channel(visible, contents[0])
        if fourth is not None and fourth.min() < fourth.max():
            picture = to_picture(fourth)
            note = "the visible image is this file's first three channels, the infrared image its fourth"
            return _decoded(visible, contents[0], max_pixels), Picture(
                picture.pixels, f"{note}; {picture.note}" if picture.note else note)
    return _decoded(visible, contents[0], max_pixels), _decoded(infrared, contents[1], max_pixels)


def to_picture(image) -> Picture:
    """A PIL image of any mode, turned as its EXIF orientation says, or a NumPy array as RGB.

    Args:
        image: arrays are (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), the fourth channel being dropped. Whole numbers
            within 0 … 255 are kept, floats within 0 … 1 multiplied by 255; anything else is stretched from its 1st to
            its 99th percentile, and noted.
    Raises:
        ValueError: neither of the two, another shape, no pixels, NaN and infinity among them, or a damaged file.
    """
    if isinstance(image, Image.Image):
        try:
            array = np.asarray(image if image.mode == "F" or image.mode.startswith("I") else image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
            raise ValueError(f"the image cannot be decoded ({printable(error)})") from error
        image = upright(array, _orientation(image))
    elif not isinstance(image, np.ndarray):
        raise ValueError(f"an image must be a NumPy array or a PIL image, not {type(image).__name__}")
    array = np.asarray(image)  # without what a subclass, such as a masked array, does of its own
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size or array.dtype.kind not in "buif":
        raise ValueError("an image must be an array of numbers of shape (height, width), or with 1, 3 or 4 channels "
                         f"behind, not {image.dtype} {image.shape}")
    array = array[..., :3]
    pixels, note = array, ""
    if array.dtype == bool:
        pixels = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        pixels = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        pixels, note = to_uint8(array), _note(array)
    return Picture(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), note)


def oddities_of_pair(visible: np.ndarray, infrared: np.ndarray) -> list[str]:
    """What makes it doubtful that two pictures are a visible and an infrared image, in sentences.

    Args:
        visible, infrared: (h, w, 3) uint8 RGB.
    """
    if visible.shape == infrared.shape and np.array_equal(visible, infrared):
        return ["the visible and the infrared image are the same picture, so there is nothing to fuse; is one of them "
                "named wrongly?"]
    step = max(1, max(infrared.shape[:2]) // 256)
    some = infrared[::step, ::step]
    if (np.ptp(some, axis=2) > COLOURED).mean() > COLOURED_SHARE:
        return ["the infrared image is in false colours: it is used, but only its luma is seen, which need not follow "
                "temperature in such a palette; export it in grey, white-hot"]
    return []


def read_bytes(path: str) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: it cannot be read, or is something else, such as a named pipe, which may never end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no regular file")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def orientation(content: bytes) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 if there is none, or if what should say it is damaged."""
    try:
        with open_image(content) as image:
            return _orientation(image)
    except ValueError:  # what cannot be opened has no orientation
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(h, w) or (h, w, c) turned and mirrored as an EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def pair_files(visible: str, infrared: str, left_out: str = "") -> tuple[list[PairOfFiles], list[str]]:
    """Files that belong together.

    Args:
        visible, infrared: both files, which are a pair whatever their names, or both folders, whose image files are
            matched by name as `pairing.match_names` says, subfolders included. One folder may hold both kinds.
        left_out: a folder whose files are not looked at, such as that for the results.
    Returns:
        The pairs by name, and the paths of the image files that have no partner.
    Raises:
        UsageError: a path is not there, or one is a file and the other a folder.
        InputError: there is no pair, or more than one way to make one.
    """
    for argument, path in (("visible", visible), ("infrared", infrared)):
        if not os.path.exists(path):
            raise UsageError(f"there is no file or folder {path!r}", argument)
    if os.path.isdir(visible) != os.path.isdir(infrared):
        raise UsageError("visible and infrared must both be files or both folders, not one of each: "
                         f"{visible!r}, {infrared!r}")
    if not os.path.isdir(visible):
        return [PairOfFiles(stem(os.path.basename(visible)), visible, infrared)], []
    if os.path.samefile(visible, infrared):
        files = list_pictures(visible, left_out)
        marked = {name for name in files if INFRARED_WORDS & words_of(name)}
        folders = ({name: path for name, path in files.items() if name not in marked or len(marked) == len(files)},
                   {name: path for name, path in files.items() if name in marked or not marked})
    else:
        folders = list_pictures(visible, left_out, infrared), list_pictures(infrared, left_out, visible)
    for folder in folders:
        refuse_same_names(folder)
    matches = match_names(*folders, (VISIBLE_WORDS, INFRARED_WORDS))
    for names in matches.ambiguous.values():
        paths = [folder[name] for folder in folders for name in names if name in folder]
        raise InputError(f"{printable(', '.join(paths[:-1]))} and {printable(paths[-1])} have names too similar to "
                         "tell which two of them are a pair; rename or remove what does not belong there")
    if not matches.partners:
        raise InputError(f"no image in {visible} ({len(folders[0])} found) has the name of one in {infrared} "
                         f"({len(folders[1])} found), suffixes aside; known suffixes are {' '.join(SUFFIXES)}")
    if any(matches.ignored):
        of_visible, of_infrared = (" or ".join(map(printable, words)) or "nothing" for words in matches.ignored)
        logger.info("to pair the names, %s is left out of those of the visible images, and %s of the infrared ones",
                    of_visible, of_infrared)
    pairs = [PairOfFiles(stem(name), folders[0][name], folders[1][partner])
             for name, partner in sorted(matches.partners.items())]
    paired = matches.partners.keys(), set(matches.partners.values())
    alone = [path for folder, names in zip(folders, paired, strict=True)
             for name, path in folder.items() if name not in names]
    return pairs, alone


def list_pictures(folder: str, *left_out: str) -> dict[str, str]:
    """The picture files in a folder and its subfolders: path by name, which is relative and has forward slashes.

    Args:
        left_out: subfolders that are not looked at; names of other folders, and empty ones, do no harm.
    Raises:
        InputError: the folder cannot be read.
    """
    def stop(error: OSError):
        raise InputError(f"{printable(error.filename)}: it cannot be read ({error.strerror})") from error

    skipped = {os.path.realpath(path) for path in left_out if path}
    found = {}
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith(".")
                            and os.path.realpath(os.path.join(root, name)) not in skipped)
        for name in sorted(names):
            path = os.path.join(root, name)
            if not name.startswith(".") and name.lower().endswith(SUFFIXES) and os.path.isfile(path):
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = path
    return dict(sorted(found.items()))


def refuse_same_names(files: dict[str, str]) -> None:
    """Refuse `a.png` beside `a.bmp`."""
    seen: dict[str, str] = {}
    for name, path in files.items():
        other = seen.setdefault(stem(name), path)
        if other != path:
            raise InputError(f"{printable(other)} and {printable(path)} share a name, so it is unclear which of them "
                             "is meant; remove one")


def _content(path: str) -> bytes:
    try:
        return read_bytes(path)
    except ValueError as error:
        raise InputError(f"{printable(path)}: {error}") from error


def _decoded(path: str, content: bytes, max_pixels: int) -> Picture:
    """A file as RGB, upright."""
    try:
        if path.lower().endswith(".npy"):
            return to_picture(_read_array(content))
        pixels, values = decode_image(content, max_pixels), deep_values(content, max_pixels)
        return Picture(upright(pixels, orientation(content)), "" if values is None else _note(values))
    except ValueError as error:
        raise InputError(f"{printable(path)} cannot be decoded as an image: {error}") from error


def _read_array(content: bytes) -> np.ndarray:
    """The array in a `.npy` file, without a batch dimension of length 1."""
    try:
        values = read_npy(content)
    except ValueError as error:
        raise ValueError(f"it {error}") from error
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    return values


def _fourth_channel(path: str, content: bytes) -> np.ndarray | None:
    """(h, w) values of the channel behind red, green and blue, be it alpha or an infrared image; None without one."""
    try:
        if path.lower().endswith(".npy"):
            values = _read_array(content)
            return values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else None
        with open_image(content) as image:
            if image.mode not in ("RGBA", "RGBX"):
                return None
            if deep_values(content) is None:
                values = np.asarray(image)
            else:  # Pillow would keep the upper 8 of 16 bits
                values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except ValueError:  # what is damaged is refused when it is decoded
        return None
    return upright(values[..., 3], orientation(content))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(Image.ExifTags.Base.Orientation, 1)
    except Exception:  # notes are damaged in as many ways as images; such a note asks for nothing
        return 1
    return value if value in range(1, 9) else 1


def _note(values: np.ndarray) -> str:
    """What `to_uint8` does to finite `values`, for people; empty if it keeps them."""
    lowest, highest = values.min(), values.max()
    if lowest >= 0 and (highest <= 1 or (highest <= 255 and not (values % 1).any())):
        return ""
    low, high = np.percentile(values, STRETCH)
    return (f"{values.dtype} values from {lowest:g} to {highest:g} scaled to 8 bits: {low:g} (percentile "
            f"{STRETCH[0]:g}) became 0, {high:g} (percentile {STRETCH[1]:g}) became 255")
