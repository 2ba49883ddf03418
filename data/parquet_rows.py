"""Single rows out of large parquet files, without holding the files in memory."""
import contextlib
import glob
import logging
import os
from bisect import bisect_right
from collections import OrderedDict

import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError

LARGE_GROUP = 64 * 2**20  # bytes, uncompressed: above it a row group is streamed, never held whole
CACHE_BYTES = 64 * 2**20  # what the cache of recent row groups may hold, per process
STREAM_ROWS = 16  # rows read ahead when streaming
STREAM_BUFFER = 2**20  # bytes of each column that streaming reads at a time

# One sample costs the reading of its whole row group, so shuffled training wants the groups small;
# 16 samples of about 360 kB are some 6 MB, read in a few milliseconds.
ROWS_PER_GROUP = 16

logger = logging.getLogger(__name__)


def find_parquet(path: str) -> list[str]:
    """The parquet files of `path`: itself, or the sorted `*.parquet` in a folder.

    Raises:
        InputError: nothing is there.
    """
    if os.path.isdir(path):
        files = sorted(glob.glob(os.path.join(glob.escape(path), "*.parquet")))
        if not files:
            raise InputError(f"{path}: there is no .parquet file in this folder")
        return files
    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file or folder")
    return [path]


def open_parquet(file: str) -> pq.ParquetFile:
    """Open `file`, reading its footer only.

    Raises:
        InputError: not a parquet file, or a truncated one.
    """
    try:
        # Plain buffered reading rather than a memory map or read-ahead: what has been read leaves the process
        # again, whereas mapped pages count as its memory until the whole file does.
        return pq.ParquetFile(file, buffer_size=STREAM_BUFFER, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: this is not a parquet file, or it is incomplete ({first_line(error)}); "
                         "download or write it again") from error


def first_line(error: Exception) -> str:
    """What `error` says, cut to one line without its final full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class ParquetRows:
    """Random access to some columns of the rows of several parquet files, read row group by row group.

    Small row groups are read whole and the latest few kept; large ones (pandas writes a file as one) are streamed
    forwards, so that reading in order is fast and memory stays bounded, but a step backwards starts the group again.
    Files are opened on first use in each process, so that an instance can be pickled and survives a fork.

    Args:
        files: parquet files whose rows follow one another.
        columns: names of the columns to read.
    Raises:
        InputError: a file that cannot be opened.
    """

    def __init__(self, files: list[str], columns: list[str]):
        self.columns = columns
        self._groups: list[tuple[str, int, int, bool]] = []  # file, its row group, first row within the file, large?
        self._starts: list[int] = []  # first row of each group, over all files
        rows = 0
        self._versions = {file: _version(file) for file in files}
        for file in files:
            metadata = open_parquet(file).metadata
            wanted = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in columns]
            first, slow = 0, False
            for group in range(metadata.num_row_groups):
                info = metadata.row_group(group)
                large = sum(info.column(i).total_uncompressed_size for i in wanted) > LARGE_GROUP
                slow |= large and info.num_rows > STREAM_ROWS
                if info.num_rows:
                    self._groups.append((file, group, first, large))
                    self._starts.append(rows)
                first, rows = first + info.num_rows, rows + info.num_rows
            if slow:
                logger.warning(
                    "%s: its row groups are large, so that reading takes much memory, and in shuffled order much time; "
                    "`python data/merge_parquet.py %s --out OTHER.parquet` rewrites it in small ones", file, file)
        self._rows = rows
        self._forget()

    def __len__(self) -> int:
        return self._rows

    def locate(self, row: int) -> tuple[str, int]:
        """The file that holds `row`, and the row's number within it."""
        group = bisect_right(self._starts, row) - 1
        file, _, first, _ = self._groups[group]
        return file, first + row - self._starts[group]

    def read(self, row: int) -> dict:
        """The columns of one row, as Python values.

        Raises:
            InputError: the file has changed or gone, or is damaged at this place.
        """
        if os.getpid() != self._process:  # after a fork: the parent's open files are not ours to use
            self._forget()
        group = bisect_right(self._starts, row) - 1
        offset = row - self._starts[group]
        try:
            if self._groups[group][3]:
                table, offset = self._stream(group, offset)
            else:
                table = self._whole(group)
        except (OSError, pa.ArrowException) as error:
            file, row = self.locate(row)
            raise InputError(f"{file}: row {row} cannot be read ({first_line(error)}); "
                             "the file is damaged, download or write it again") from error
        return {name: table.column(name)[offset].as_py() for name in self.columns}

    def _whole(self, group: int) -> pa.Table:
        table = self._cache.pop(group, None)
        if table is None:
            file, number, _, _ = self._groups[group]
            table = self._open(file).read_row_group(number, columns=self.columns, use_threads=False)
        self._cache[group] = table  # now the latest
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return table

    def _stream(self, group: int, offset: int) -> tuple[pa.RecordBatch, int]:
        """Move the cursor on to the batch with row `offset` of `group`; also return the row's place in it."""
        if self._cursor is None or self._cursor_group != group or offset < self._batch_start:
            file, number, _, _ = self._groups[group]
            self._cursor = self._open(file).iter_batches(
                batch_size=STREAM_ROWS, row_groups=[number], columns=self.columns, use_threads=False)
            self._cursor_group, self._batch_start, self._batch = group, 0, next(self._cursor)
        while offset >= self._batch_start + len(self._batch):
            self._batch_start += len(self._batch)
            self._batch = next(self._cursor)
        return self._batch, offset - self._batch_start

    def _open(self, file: str) -> pq.ParquetFile:
        if file not in self._open_files:
            if _version(file) != self._versions[file]:
                raise InputError(f"{file}: the file has changed or gone since it was first opened; start again")
            self._open_files[file] = open_parquet(file)
        return self._open_files[file]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open_files: dict[str, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cursor, self._cursor_group, self._batch, self._batch_start = None, -1, None, 0

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("columns", "_groups", "_starts", "_rows", "_versions")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()


def _version(file: str) -> tuple[int, int] | None:
    """Size and time of last change, which another file of the same name would hardly share."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        return status.st_size, status.st_mtime_ns
    return None
