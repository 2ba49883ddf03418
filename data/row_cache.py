"""A copy of a parquet file in small row groups, written once, so that training can read its rows in any order."""
import contextlib
import errno
import hashlib
import logging
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError
from utils.files import replacing
from utils.locations import Unreachable, is_url, version
from utils.progress import progress_bar

from .columns import FUSED, IMAGES, MASK
from .parquet_rows import ROWS_PER_GROUP, ParquetRows, ReadLimits, open_parquet, what_to_do

try:
    import fcntl
except ImportError:  # Windows has no such locks: two programs that need a copy at once both write it
    fcntl = None

ENDING = ".row_cache"  # not .parquet: beside the file, it is no part of the data set
SOURCE = b"size and time of last change of the copied file"

logger = logging.getLogger(__name__)


def small_row_groups(file: str, columns: list[str], cache_dir: str, limits: ReadLimits) -> str:
    """The file from which to read the rows of `file` in any order: itself, or a copy where its row groups are large.

    The copy holds images and masks alone. It is used again as long as `file` keeps its size and time of last change.

    Args:
        file: path or URL; all row groups of a URL count as large.
        columns: what will be read.
        cache_dir: folder of the copy, made if absent; empty: the folder of `file`, and no copy of a URL.
        limits: which row groups are large.
    Returns:
        Path of a file with the same rows. It is `file`, with a warning, if that is too damaged to be copied.
    Raises:
        InputError: the copy cannot be written, as when the disk is full; about the argument `cache_dir`.
        Unreachable: the URL cannot be read any more.
    """
    if is_url(file) and not cache_dir or ParquetRows([file], columns, limits).windows() is None:
        return file
    target = cache_path(file, cache_dir)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with _locked(os.path.dirname(target)):
            if not _is_copy(target, file, columns):
                logger.info("%s: %s; a copy in small ones is written to %s, so that training can read rows in any "
                            "order. It is used again next time, and may be deleted", file, "its row groups are not on "
                            "this machine" if is_url(file) else "its row groups are large", target)
                _write_copy(file, target, min(ROWS_PER_GROUP, limits.few_rows))
    except OSError as error:
        reason = f"{target}: it cannot be written ({error.strerror or error})"
        raise InputError(f"{reason}; {_instead(file)}", "cache_dir") from error
    except Unreachable:
        raise
    except InputError as error:
        raise InputError(f"{error}; {_instead(file)}", "cache_dir") from error
    except _Damaged as error:
        logger.warning("%s; its rows are shuffled only within parts of it", error)
        return file
    return target


def remove_copies(files: list[str], cache_dir: str) -> None:
    """Delete the copies that `small_row_groups` has written of `files`; those that do not exist are left out."""
    for file in files:
        if cache_dir or not is_url(file):
            with contextlib.suppress(FileNotFoundError):
                os.remove(cache_path(file, cache_dir))


def cache_path(file: str, cache_dir: str) -> str:
    """Where the copy of `file` lies; `cache_dir` is not empty for a URL."""
    if not cache_dir:
        return os.path.abspath(file) + ENDING
    parent = os.path.dirname(file if is_url(file) else os.path.abspath(file))
    folder = hashlib.blake2b(parent.encode(errors="surrogateescape"), digest_size=4)
    return os.path.join(os.path.abspath(cache_dir), f"{os.path.basename(file)}.{folder.hexdigest()}{ENDING}")


class _Damaged(Exception):
    """Rows of the file cannot be read."""


def _instead(file: str) -> str:
    return (f"name a folder with more room, or rewrite the data once with `python data/merge_parquet.py {file} --out "
            "OTHER.parquet` and use that file")


@contextlib.contextmanager
def _locked(folder: str):
    """Let one process at a time write copies into `folder`; the system ends the lock of a process that dies."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stamp(file: str) -> bytes:
    """For a path, its size and time of last change."""
    return " ".join(map(str, version(file) or ())).encode()


def _is_copy(target: str, file: str, columns: list[str]) -> bool:
    """Whether `target` is a whole copy of `file` as it is now, with `columns`; earlier versions left FUSED out."""
    try:
        parquet = open_parquet(target)
    except (InputError, OSError):
        return False
    schema = parquet.schema_arrow
    return (schema.metadata or {}).get(SOURCE) == _stamp(file) and set(columns) <= set(schema.names)


def _write_copy(file: str, target: str, rows_per_group: int) -> None:
    parquet, stamp = open_parquet(file), _stamp(file)
    columns = [column for column in (*IMAGES, FUSED, MASK) if column in parquet.schema_arrow.names]
    schema = pa.schema([parquet.schema_arrow.field(column) for column in columns], {SOURCE: stamp})
    _check_room(os.path.dirname(target), parquet.metadata, columns)
    batches = parquet.iter_batches(batch_size=rows_per_group, columns=columns, use_threads=False)
    with (replacing(target) as temporary, pq.ParquetWriter(temporary, schema, use_dictionary=False) as writer,
          progress_bar(total=parquet.metadata.num_rows, desc="copying into small row groups", unit="row") as bar):
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise _Damaged(f"{file}: it cannot be read to its end {what_to_do(error)}") from error
            if batch is None:
                return
            writer.write_table(pa.Table.from_batches([batch]).select(columns).cast(schema), rows_per_group)
            bar.update(len(batch))


def _check_room(folder: str, metadata: pq.FileMetaData, columns: list[str]) -> None:
    needed = sum(column.total_compressed_size for number in range(metadata.num_row_groups)
                 for column in map(metadata.row_group(number).column, range(metadata.num_columns))
                 if column.path_in_schema.split(".")[0] in columns)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
