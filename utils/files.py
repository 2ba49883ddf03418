"""Files: written whole or not at all, named so that they stay in their folder, moved aside for a new run."""
import contextlib
import logging
import os
import re
from collections import Counter

from .errors import InputError

logger = logging.getLogger(__name__)

LONGEST_NAME = 200  # bytes; file systems end at 255


@contextlib.contextmanager
def replacing(path: str, durable: bool = True):
    """Give the name of a temporary file beside `path`, which takes its place if the block succeeds and goes if not.

    Args:
        durable: the file is on the disk before it takes the name, so a power cut leaves the old one or the new one.
            This takes milliseconds; False does without, for pictures by the thousand, which can be made again.
    Raises:
        InputError: the file cannot be written.
    """
    # Always the same name: what a killed process leaves is overwritten by the next.
    temporary = os.path.join(os.path.dirname(os.path.abspath(path)), f".{os.path.basename(path)}.tmp")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # it has taken its place, or was never made
            os.remove(temporary)


def set_aside(folder: str, pattern: str) -> None:
    """Move what an earlier run left in `folder` to a subfolder of it, so that neither is lost and none is mixed.

    Args:
        pattern: regular expression; files and folders whose whole name matches are moved.
    Raises:
        InputError: they cannot be moved.
    """
    left = [name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    if not left:
        return
    number = 1
    while os.path.exists(aside := os.path.join(folder, f"earlier_run_{number}")):
        number += 1
    try:
        os.mkdir(aside)
        for name in left:
            os.rename(os.path.join(folder, name), os.path.join(aside, name))
    except OSError as error:
        raise InputError(f"{folder}: results of an earlier run cannot be moved to {aside} ({error.strerror})"
                         ) from error
    logger.info("%s held results of an earlier run, which are now in %s", folder, aside)


def file_stem(name: str) -> str:
    """`name` as a plain file name: whatever the data say, no path. Separators and control characters become _."""
    stem = re.sub(r"[/\\\x00-\x1f\x7f]", "_", name).lstrip(".")  # no hidden files
    stem = stem.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore")
    return stem or "_"


def unique_names(stems: list[str], indices: list[int]) -> list[str]:
    """The stems, with `_{index}` behind those that occur more than once; no two alike, even in letter case."""
    occurrences = Counter(stem.casefold() for stem in stems)  # some file systems take A.jpg and a.jpg for the same
    used = {stem for stem, count in occurrences.items() if count == 1}
    names = []
    for stem, index in zip(stems, indices, strict=True):
        name = stem
        if occurrences[stem.casefold()] > 1:
            while (name := f"{name}_{index}").casefold() in used:
                pass
            used.add(name.casefold())
        names.append(name)
    return names
