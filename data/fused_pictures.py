"""Pictures that any method has fused, found by the names of the images that they were made from."""
import logging
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from utils.errors import InputError, UsageError
from utils.files import file_stem, unique_names
from utils.text import printable

from .pairing import INFRARED_WORDS, VISIBLE_WORDS, fold, match_names, stem
from .pictures import SUFFIXES, PairOfFiles, list_pictures, refuse_same_names

FUSED_WORDS = frozenset(["fused", "fuse", "fusion", "result", "results", "output"]) | VISIBLE_WORDS | INFRARED_WORDS

logger = logging.getLogger(__name__)


class FusedFiles(NamedTuple):
    """The pictures of a folder that belong to pairs of images, or to rows of a data set."""

    paths: list[str | None]  # of each pair or row; None where there is no picture
    alone: list[str]  # paths of the pictures that belong to none


def pictures_by_name(folder: str) -> dict[str, str]:
    """The picture files in a folder and its subfolders, as `pictures.list_pictures` gives them.

    Raises:
        UsageError: there is no such folder.
        InputError: it cannot be read, or two files differ in their suffix alone.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {printable(folder)!r}")
    files = list_pictures(folder)
    refuse_same_names(files)
    return files


def match_pairs(folder: str, pairs: list[PairOfFiles]) -> FusedFiles:
    """The fused picture of each pair, by names as in `pictures.pair_files`.

    Args:
        folder: of the fused pictures.
        pairs: of `pictures.pair_files`.
    Raises:
        UsageError, InputError: as `pictures_by_name`; or several pictures fit a pair equally well.
    """
    files = pictures_by_name(folder)
    names = [f"{pair.name}.png" for pair in pairs]  # the suffix does not count, but a name has one
    matches = match_names(files, names, (FUSED_WORDS, VISIBLE_WORDS))
    for found in matches.ambiguous.values():
        here = ", ".join(printable(files.get(name, name)) for name in found)
        raise InputError(f"{here} have names too similar to tell which picture belongs to which pair; rename or remove "
                         "what does not belong there")
    if matches.ignored[0]:
        ignored = ", ".join(map(printable, matches.ignored[0]))
        logger.info("names are matched without %s in those of %s", ignored, printable(folder))
    path_of = {partner: files[name] for name, partner in matches.partners.items()}
    return FusedFiles([path_of.get(name) for name in names],
                      [path for name, path in files.items() if name not in matches.partners])


def match_rows(folder: str, names: Sequence[str], indices: Sequence[int]) -> FusedFiles:
    """The fused picture of each row of a data set; several rows may share one.

    The first of these that exists, whatever its suffix and its upper and lower case: `{name}_{index}`, the name that
    test.py gives the row's fused image, `{name}`, `{index}`; names with or without the suffix of an image file. What is
    the name of another row's image as well is passed over.

    Args:
        folder: of the fused pictures, in formats that `decode.decode_image` reads.
        names, indices: `image_name` and `index` of all rows.
    Raises:
        UsageError, InputError: as `pictures_by_name`; or two files differ in upper and lower case alone.
    """
    files: dict[str, str] = {}
    for name, path in pictures_by_name(folder).items():
        if name.lower().endswith(".npy"):
            continue
        other = files.setdefault(fold(stem(name)), path)
        if other != path:
            raise InputError(f"{printable(other)} and {printable(path)} differ in upper and lower case alone, so it is "
                             "unclear which of them is meant; remove one")
    taken = {fold(form) for name in set(names) for form in _forms(name)}
    written = unique_names([file_stem(name) for name in names], list(indices))
    paths = [next((files[key] for key in map(fold, _keys(name, index, as_written, taken)) if key in files), None)
             for name, index, as_written in zip(names, indices, written, strict=True)]
    return FusedFiles(paths, sorted(set(files.values()) - set(paths)))


def _keys(name: str, index: int, written: str, taken: set[str]) -> Iterator[str]:
    """Under which names the picture of a row may be found, the likeliest first."""
    forms = _forms(name)
    yield from (key for form in forms if fold(key := f"{form}_{index}") not in taken)
    yield written
    yield from forms
    if str(index) not in taken:
        yield str(index)


def _forms(name: str) -> list[str]:
    """The name of an image, with and without suffix."""
    name = name.replace("\\", "/")
    return [name, stem(name)] if name.lower().endswith(SUFFIXES) else [name]
