"""Files by path or by URL: what fsspec opens, as in hf://datasets/NAME/SET/file.parquet, is read without a download."""
import contextlib
import io
import os
import re
from typing import Any

from .errors import InputError
from .text import first_line, printable

URL = re.compile(r"[a-z0-9][a-z0-9+.-]*(::[a-z0-9][a-z0-9+.-]*)*://", re.IGNORECASE)
# What tells two versions of a file apart, by the names that file systems have for it.
IDENTITY = ("blob_id", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


class Unreachable(InputError):
    """A URL that cannot be read now, as without a connection; what is there is not to blame."""


def is_url(path: str) -> bool:
    """Whether `path` is a URL, of any scheme, or a chain of them as in `simplecache::https://…`."""
    return bool(URL.match(path))


def exists(path: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        Unreachable: a URL's scheme is unknown, needs a package that is absent, or there is no connection.
    """
    return _info(path) is not None if is_url(path) else os.path.exists(path)


def is_file(path: str) -> bool:
    """Whether there is a file, not a folder; raises as `exists`."""
    if not is_url(path):
        return os.path.isfile(path)
    info = _info(path)
    return info is not None and info["type"] != "directory"


def list_folder(url: str) -> list[str] | None:
    """Names of what is in a folder, or None if the URL is that of no folder; raises as `exists`."""
    info = _info(url)
    if info is None or info["type"] != "directory":
        return None
    with _explained(url):
        system, path = _resolve(url)
        return [name.rstrip("/").rsplit("/", 1)[-1] for name in system.ls(path, detail=False)]


def version(path: str) -> tuple[Any, ...] | None:
    """Size and time of last change or checksum, which another file of the same name would hardly share; None: no file.

    Raises as `exists`.
    """
    if is_url(path):
        info = _info(path)
        return None if info is None else (info.get("size"), *(str(info[key]) for key in IDENTITY if info.get(key)))
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return None


def open_url(url: str) -> io.RawIOBase:
    """A file for reading bytes at any place, each read a request of exactly these bytes.

    It is opened by and for the current process. Its errors are Unreachable, too.

    Raises:
        FileNotFoundError: there is no such file.
        Unreachable: as of `exists`.
    """
    with _explained(url):
        system, path = _resolve(url)
        return _RemoteFile(system.open(path, "rb", cache_type="none"), url)


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose errors are sentences, whatever the library below raises."""

    def __init__(self, file: Any, url: str):
        super().__init__()
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        with _explained(self._url):
            return self._file.read(size)


def _resolve(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _info(url: str) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError), _explained(url):
        system, path = _resolve(url)
        return system.info(path)
    return None


@contextlib.contextmanager
def _explained(url: str):
    """A context in which all errors but a missing file become a sentence; each file system raises kinds of its own."""
    try:
        yield
    except (FileNotFoundError, MemoryError, InputError):
        raise
    except ImportError as error:
        raise Unreachable(f"{printable(url)} needs a package that is not installed ({first_line(error)})") from error
    except ValueError as error:
        raise Unreachable(f"{printable(url)} cannot be read ({first_line(error)}); name a file as in "
                          "hf://datasets/NAME/SET/FILE.parquet") from error
    except Exception as error:
        reason = first_line(error) or type(error).__name__
        raise Unreachable(f"{printable(url)} cannot be read ({reason}); is there a connection? Without one, give the "
                          "path of a file that was downloaded") from error
