"""Pictures that any method has fused, found by the names of the images that they were made from."""
import logging
import os
from typing import NamedTuple

from utils.errors import InputError, UsageError
from utils.text import printable

from .pairing import INFRARED_WORDS, VISIBLE_WORDS, match_names
from .pictures import PairOfFiles, list_pictures, refuse_same_names

FUSED_WORDS = frozenset(["fused", "fuse", "fusion", "result", "results", "output"]) | VISIBLE_WORDS | INFRARED_WORDS

logger = logging.getLogger(__name__)


class FusedFiles(NamedTuple):
    """The pictures of a folder that belong to pairs of images."""

    paths: list[str | None]  # of each pair; None where there is no picture
    alone: list[str]  # paths of the pictures that belong to no pair


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
