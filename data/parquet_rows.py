"""Single rows out of large parquet files, without holding the files in memory."""
import contextlib
import logging
import os
from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError

# One sample costs the reading of its whole row group, so shuffled training wants the groups small;
# 16 samples of about 360 kB are some 6 MB, read in a few milliseconds.
ROWS_PER_GROUP = 16
FEW_ROWS, SMALL_GROUP = 16, 8 * 2**20  # groups of so many rows or bytes (uncompressed) are read for a single sample
WINDOW_BYTES = 64 * 2**20  # what is held of larger ones at a time, per process
STREAM_BUFFER = 2**20  # bytes of each column that streaming reads at a time

logger = logging.getLogger(__name__)


def find_parquet(path: str) -> list[str]:
    """The parquet files of `path`: itself, or the sorted `*.parquet` in a folder.

    Raises:
        InputError: nothing is there.
    """
    if os.path.isdir(path):
        try:
            files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".parquet"))
        except OSError as error:
            raise InputError(f"{path}: this folder cannot be read ({error.strerror})") from error
        if not files:
            raise InputError(f"{path}: there is no .parquet file in this folder")
        return files
    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file or folder")
    return [path]


def open_parquet(file: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open `file`, reading its footer only, or not even that where its `metadata` are known.

    Raises:
        InputError: not a parquet file, or a truncated one, or one that may not be read.
    """
    try:
        # Plain buffered reading rather than a memory map or read-ahead: what has been read leaves the process
        # again, whereas mapped pages count as its memory until the whole file does.
        return pq.ParquetFile(file, metadata=metadata, buffer_size=STREAM_BUFFER, pre_buffer=False)
    except PermissionError as error:
        raise InputError(f"{file}: it may not be read (Permission denied); change its permissions") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: this is not a parquet file, or it is incomplete ({first_line(error)}); "
                         "download or write it again") from error


def first_line(error: Exception) -> str:
    """What `error` says, cut to one line without its final full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class RowError(InputError):
    """A row that cannot be used, where others of its file may be."""


class ParquetRows:
    """Random access to some columns of the rows of several parquet files, read row group by row group.

    Small row groups are read whole for each row. Of larger ones, the latest few are kept; those beyond WINDOW_BYTES
    (pandas writes a whole file as one) are streamed forwards, a window of rows at a time, so that reading window by
    window is fast and memory stays bounded, but a step back to an earlier window starts the group again.
    `windows` says which rows lie together; `data.sampler` makes use of it.
    Files are opened on first use in each process, so that an instance can be pickled and survives a fork.

    Args:
        files: parquet files whose rows follow one another.
        columns: names of the columns to read.
    Raises:
        InputError: a file that cannot be opened.
    """

    def __init__(self, files: list[str], columns: list[str]):
        self.files, self.columns = files, columns
        self._versions = [_version(file) for file in files]
        self._metadata = [open_parquet(file).metadata for file in files]  # processes share it, each would read it again
        # Arrays rather than lists of objects, which each loading process would copy as it looks at them.
        self._groups, self._bytes = self._list_groups()
        rows = self._groups["rows"]
        self._starts = np.cumsum(rows) - rows  # first row of each group, over all files
        self._count = int(rows.sum())
        self._warn()
        self._forget()

    def _list_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row group that is not empty: file, number, first row within the file, rows, rows of a window; and
        its uncompressed bytes."""
        groups, sizes = [], []
        for place, metadata in enumerate(self._metadata):
            wanted = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in self.columns]
            first = 0
            for number in range(metadata.num_row_groups):
                info = metadata.row_group(number)
                size = sum(info.column(i).total_uncompressed_size for i in wanted)
                rows = info.num_rows
                if rows:
                    streamed = rows > FEW_ROWS and size > WINDOW_BYTES
                    window = min(rows, max(FEW_ROWS, rows * WINDOW_BYTES // size)) if streamed else rows
                    groups.append((place, number, first, rows, window))
                    sizes.append(size)
                first += rows
        kind = [(name, np.int64) for name in ("file", "number", "first", "rows", "window")]
        return np.array(groups, kind), np.array(sizes, np.int64)

    def _warn(self) -> None:
        for place in np.unique(self._groups["file"][~self._small]).tolist():
            file, of_file = self.files[place], self._groups["file"] == place
            worst = np.argmax(np.where(of_file, self._bytes, 0))
            logger.warning(
                "%s: its row groups are large (%d rows, %d MB), so that training shuffles within windows of %d MB only "
                "and reading takes much memory in each process; `python data/merge_parquet.py %s --out OTHER.parquet` "
                "rewrites it in small ones", file, self._groups["rows"][worst], self._bytes[worst] / 1e6,
                WINDOW_BYTES / 1e6, file)

    @property
    def _small(self) -> np.ndarray:
        """Of each group, whether a single row of it is read at little cost."""
        return (self._groups["rows"] <= FEW_ROWS) | (self._bytes <= SMALL_GROUP)

    def windows(self) -> list[list[tuple[int, int, int]]] | None:
        """How the rows lie, or None where all row groups are small, so that any order of reading is as good.

        Returns:
            For each row group its windows, each (first row, row after the last, bytes); several windows of a group
            must be read in this order.
        """
        if self._small.all():
            return None
        return [[(int(start) + at, int(start) + min(at + int(group["window"]), int(group["rows"])),
                  int(size * group["window"] // group["rows"]))
                 for at in range(0, int(group["rows"]), int(group["window"]))]
                for start, group, size in zip(self._starts, self._groups, self._bytes, strict=True)]

    def __len__(self) -> int:
        return self._count

    def locate(self, row: int) -> tuple[str, int]:
        """The file that holds `row`, and the row's number within it."""
        group = self._group(row)
        return self.files[self._groups["file"][group]], int(self._groups["first"][group] + row - self._starts[group])

    def read(self, row: int) -> dict[str, memoryview | None]:
        """The columns of one row, without a copy; the views keep the memory of their whole window.

        Raises:
            RowError: the file is damaged at this place.
            InputError: the file has changed or gone.
        """
        if os.getpid() != self._process:  # after a fork: the parent's open files are not ours to use
            self._forget()
        group = self._group(row)
        offset = int(row - self._starts[group])
        try:
            if self._groups["window"][group] < self._groups["rows"][group]:
                table, offset = self._stream(group, offset)
            else:
                table = self._whole(group)
        except (OSError, pa.ArrowException) as error:
            self._cursor = None  # it is of no further use
            file, row = self.locate(row)
            raise RowError(f"{file}: row {row} cannot be read ({first_line(error)}); "
                           "the file is damaged, download or write it again") from error
        cells = {name: table.column(name)[offset] for name in self.columns}
        return {name: memoryview(cell.as_buffer()) if cell.is_valid else None for name, cell in cells.items()}

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _whole(self, group: int) -> pa.Table:
        table = self._cache.pop(group, None)
        if table is None:
            table = self._open(group).read_row_group(
                int(self._groups["number"][group]), columns=self.columns, use_threads=False)
        self._cache[group] = table  # now the latest
        # Twice a window: what several rows share takes less room in the file than here.
        room = 2 * WINDOW_BYTES if self._keep else 0
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > room:
            self._cache.popitem(last=False)
        return table

    def _stream(self, group: int, offset: int) -> tuple[pa.RecordBatch, int]:
        """Move the cursor on to the window with row `offset` of `group`; also return the row's place in it."""
        if self._cursor is None or self._cursor_group != group or offset < self._batch_start:
            self._batch = None  # before the next is there
            self._cursor = self._open(group).iter_batches(
                batch_size=int(self._groups["window"][group]), row_groups=[int(self._groups["number"][group])],
                columns=self.columns, use_threads=False)
            self._cursor_group, self._batch_start, self._batch = group, 0, next(self._cursor)
        while offset >= self._batch_start + len(self._batch):
            self._batch_start += len(self._batch)
            self._batch = None
            self._batch = next(self._cursor)
        return self._batch, offset - self._batch_start

    def _open(self, group: int) -> pq.ParquetFile:
        place = int(self._groups["file"][group])
        if place not in self._open_files:
            file = self.files[place]
            if _version(file) != self._versions[place]:
                raise InputError(f"{file}: the file has changed or gone since it was first opened; start again")
            self._open_files[place] = open_parquet(file, self._metadata[place])
        return self._open_files[place]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._keep = not self._small.all()  # of small groups in any order, none is needed twice
        self._open_files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cursor, self._cursor_group, self._batch, self._batch_start = None, -1, None, 0

    def __getstate__(self) -> dict:
        kept = ("files", "columns", "_versions", "_metadata", "_groups", "_bytes", "_starts", "_count")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()


def _version(file: str) -> tuple[int, int] | None:
    """Size and time of last change, which another file of the same name would hardly share."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        return status.st_size, status.st_mtime_ns
    return None
