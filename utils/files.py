"""Files: written whole or not at all, named so that they stay in their folder, moved aside for a new run."""
import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections import Counter

from .errors import InputError
from .text import first_line

try:
    import fcntl
except ImportError:  # Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LONGEST_NAME = 200  # bytes; file systems end at 255
LEFTOVER = r"\.writing-(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,10})-[0-9a-f]{16}\.tmp"
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # what no reading can end with


@contextlib.contextmanager
def replacing(path: str, durable: bool = True):
    """Give the name of a temporary file beside `path`, which takes its place if the block succeeds and goes if not.

    The temporary file exists, empty and under a name that nobody else has, when the block starts. What processes that
    were killed left in the folder is removed.

    Args:
        durable: the file is on the disk before it takes the name, so a power cut leaves the old one or the new one.
            This takes milliseconds; False does without, for pictures by the thousand, which can be made again.
    Raises:
        InputError: the file cannot be written, or the block fails with an OSError; the two are told apart.
    """
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        remove_leftovers(folder)
        temporary = _new_file(folder)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BrokenPipeError:  # of what the block prints
        raise
    except OSError as error:
        reason = error.strerror or first_line(error)
        if temporary is None or error.errno in CANNOT_WRITE or error.filename in (temporary, path):
            raise InputError(f"{path}: it cannot be written ({reason})") from error
        source = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{path}: it was not written, because of another error ({source}{reason})") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # it has taken its place
                os.remove(temporary)


def _new_name(folder: str) -> str:
    return os.path.join(folder, f".writing-{machine_name()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")


def _new_file(folder: str) -> str:
    """Create an empty file that did not exist, readable by whom the umask allows."""
    path = _new_name(folder)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path


@contextlib.contextmanager
def replacing_folder(path: str):
    """Give the name of a new folder beside `path`, which takes its place if the block succeeds and goes if not.

    A folder that was at `path` is removed with all that it holds.

    Raises:
        InputError: it cannot be written.
    """
    path = os.path.realpath(path)
    parent = os.path.dirname(path)
    temporary = _new_name(parent)
    earlier = f"{temporary}.earlier"  # not a name of LEFTOVER, so that it is not removed before the new one is there
    try:
        os.makedirs(parent, exist_ok=True)
        remove_leftovers(parent)
        os.mkdir(temporary)
        yield temporary
        for name in os.listdir(temporary):
            with open(os.path.join(temporary, name), "rb+") as file:
                os.fsync(file.fileno())
        if os.path.isdir(path):
            os.rename(path, earlier)
        os.rename(temporary, path)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror or first_line(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@functools.cache  # once for each folder
def remove_leftovers(folder: str) -> None:
    """Remove temporary files and folders whose process is dead, or which are older than a day."""
    for name in os.listdir(folder):
        if not (match := re.fullmatch(LEFTOVER, name)):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # another process may have removed it
            here = match["machine"] == machine_name()
            old = time.time() - os.lstat(path).st_mtime > 24 * 60 * 60
            if old or here and not _is_running(int(match["process"])):
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def _is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name != "posix":  # elsewhere `os.kill` would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@functools.cache
def machine_name() -> str:
    """A short name for this machine or container, since process numbers mean nothing on another."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # only Linux has it
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]


def lock(file) -> bool:
    """Lock an open file for this process, unless another process has; whether it could be done.

    The lock ends when the file is closed or the process ends, however that ends. On systems and file systems without
    locks nothing is locked, which counts as success. A POSIX lock, because worker processes, which may outlive a killed
    run by seconds, do not inherit it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


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
    """`name` as a file name that is no path, whatever it holds: separators and control characters become _."""
    stem = re.sub(r"[/\\\x00-\x1f\x7f]", "_", name).lstrip(".")  # no hidden files
    stem = stem.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore")
    return stem or "_"


def unique_names(stems: list[str], indices: list[int]) -> list[str]:
    """The stems, with `_{index}` behind those that occur more than once; no two alike, even in letter case.

    Args:
        indices: all different, so that names which end in them are too.
    """
    occurrences = Counter(stem.casefold() for stem in stems)  # some file systems take A.jpg and a.jpg for the same
    used = {stem for stem, count in occurrences.items() if count == 1}
    names = []
    for stem, index in zip(stems, indices, strict=True):
        name = stem
        if occurrences[stem.casefold()] > 1:
            while (name := f"{name}_{index}").casefold() in used:
                pass
        names.append(name)
    return names
