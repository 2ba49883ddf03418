"""Single rows out of large parquet files, without holding the files in memory."""
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError
from utils.locations import is_url, list_folder, open_url, version
from utils.text import first_line

from .cells import bytes_of

# In files that this project writes. Reading one row costs reading its whole row group, so shuffled training needs
# small ones; 16 samples of about 360 kB are some 6 MB, read in a few milliseconds.
ROWS_PER_GROUP = 16
STREAM_BUFFER = 2**20  # bytes of each column that streaming reads at a time
REMOTE_BUFFER = 2**22  # likewise of a URL, where each is a request


@dataclass(frozen=True)
class ReadLimits:
    """Which row groups are read whole for a single row, and how much of the others is in memory.

    Attributes:
        few_rows, small_bytes: a row group is small if it has at most so many rows, or so many bytes uncompressed.
        window_bytes: uncompressed bytes of larger row groups in memory at a time, in each process.
    """

    few_rows: int = 16
    small_bytes: int = 8 * 2**20
    window_bytes: int = 64 * 2**20


def find_parquet(path: str) -> list[str]:
    """The parquet files of `path`, which may be a URL: itself, or the sorted `*.parquet` in a folder.

    Raises:
        InputError: nothing is there.
    """
    if is_url(path):
        start, names = path.rstrip("/") + "/", list_folder(path)
    elif os.path.isdir(path):
        try:
            start, names = os.path.join(path, ""), os.listdir(path)
        except OSError as error:
            raise InputError(f"{path}: this folder cannot be read ({error.strerror})") from error
    elif os.path.lexists(path):
        return [path]
    else:
        raise InputError(f"{path}: there is no such file or folder")
    if names is None:
        return [path]
    files = sorted(start + name for name in names if name.endswith(".parquet"))
    if not files:
        raise InputError(f"{path}: there is no .parquet file in this folder")
    return files


def open_parquet(file: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open `file`, reading its footer only, or not even that where its `metadata` are known.

    Raises:
        InputError: not a parquet file, or a truncated one, or one that may not be read.
    """
    try:
        if is_url(file):
            return pq.ParquetFile(open_url(file), metadata=metadata, buffer_size=REMOTE_BUFFER, pre_buffer=False)
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading from a pipe would wait for ever
            raise InputError(f"{file}: this is not a regular file; a parquet file is needed")
        # Buffered reading rather than a memory map or read-ahead: mapped pages count as memory of the process until
        # the file is closed.
        return pq.ParquetFile(file, metadata=metadata, buffer_size=STREAM_BUFFER, pre_buffer=False)
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file") from error
    except PermissionError as error:
        raise InputError(f"{file}: it may not be read (Permission denied); change its permissions") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: this is not a parquet file, or it is incomplete ({first_line(error)}); "
                         "download or write it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: the name of a column is not valid UTF-8 text; write the file again with other "
                         "names") from error


def what_to_do(error: Exception) -> str:
    """Why Arrow cannot read a parquet file, in brackets, and what helps."""
    if "decrypt" in str(error) or "encrypted" in str(error):
        return "(it is encrypted); write it again without encryption"
    return f"({first_line(error)}); the file is damaged, download or write it again"


def _refuse_encrypted(file: str, parquet: pq.ParquetFile, columns: list[str]) -> None:
    """Arrow ends the process when it is asked about an encrypted column; when it reads one, it raises an error."""
    if not parquet.metadata.num_row_groups:
        return
    try:
        next(parquet.iter_batches(batch_size=1, row_groups=[0], columns=columns, use_threads=False), None)
    except (OSError, pa.ArrowException) as error:
        if "encrypted" in what_to_do(error):
            raise InputError(f"{file}: columns {', '.join(columns)} cannot be read {what_to_do(error)}") from error
        # Anything else concerns some rows, and is reported with them.


class RowError(InputError):
    """A row that cannot be used, where others of its file may be."""


class ParquetRows:
    """Random access to some columns of the rows of several parquet files, read row group by row group.

    Small row groups are read whole for each row. Of larger ones, the latest few are kept; those that exceed
    `limits.window_bytes` (pandas writes a whole file as one) are streamed forwards, a window of rows at a time: reading
    window by window is fast and memory stays bounded, but a step back to an earlier window starts the group again.
    `windows` says which rows lie together; `data.sampler` orders an epoch by it. All row groups of a URL count as
    large: each is requested once for all its rows and not for every one.
    Files are opened on first use in each process, so that an instance can be pickled and survives a fork.

    Args:
        files: parquet files or URLs of such, whose rows follow one another.
        columns: names of the columns to read; they hold bytes in one of the types that `cells.bytes_of` reads.
        limits: see `ReadLimits`.
        sources: files to read from instead, with the same rows as `files`, which messages name.
    Raises:
        InputError: a file that cannot be opened.
    """

    def __init__(self, files: list[str], columns: list[str], limits: ReadLimits | None = None,
                 sources: list[str] | None = None):
        self.files, self.columns, self.limits = files, columns, limits or ReadLimits()
        self.sources = sources or files
        self._versions = [version(file) for file in self.sources]
        # Kept, so that worker processes share it instead of each reading it again.
        self._metadata = [self._read_metadata(file) for file in self.sources]
        # Arrays rather than lists of objects, which each worker process would copy as it looks at them.
        self._groups, self._bytes = self._list_groups()
        rows = self._groups["rows"]
        self._starts = np.cumsum(rows) - rows  # first row of each group, over all files
        self._count = int(rows.sum())
        self._forget()

    def _read_metadata(self, file: str) -> pq.FileMetaData:
        parquet = open_parquet(file)
        _refuse_encrypted(file, parquet, self.columns)
        return parquet.metadata

    def _list_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row group that is not empty: file, number, first row within the file, rows, rows of a window; and
        its uncompressed bytes."""
        groups, sizes = [], []
        for file, metadata in enumerate(self._metadata):
            wanted = [i for i in range(metadata.num_columns)
                      if metadata.schema.column(i).path.split(".")[0] in self.columns]
            first = 0
            for number in range(metadata.num_row_groups):
                info = metadata.row_group(number)
                size = sum(info.column(i).total_uncompressed_size for i in wanted)
                rows = info.num_rows
                if rows > 0:
                    few, room = self.limits.few_rows, self.limits.window_bytes
                    window = min(rows, max(few, rows * room // size)) if rows > few and size > room else rows
                    groups.append((file, number, first, rows, window))
                    sizes.append(size)
                first += rows
        kind = [(name, np.int64) for name in ("file", "number", "first", "rows", "window")]
        return np.array(groups, kind), np.array(sizes, np.int64)

    @property
    def _small(self) -> np.ndarray:
        """Of each group, whether a single row of it is read at little cost."""
        here = ~np.array([is_url(file) for file in self.sources])[self._groups["file"]]
        return here & ((self._groups["rows"] <= self.limits.few_rows) | (self._bytes <= self.limits.small_bytes))

    @property
    def remote(self) -> bool:
        """Whether rows are read from a URL."""
        return any(map(is_url, self.sources))

    def windows(self) -> list[list[tuple[int, int, int]]] | None:
        """Which rows lie together, or None where all row groups are small, so that any order of reading is as fast.

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
        """The columns of one row, as a rule without a copy; the views keep the memory of their whole window.

        Raises:
            RowError: the file is damaged at this place, or a cell holds no bytes.
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
            cells = {name: table.column(name)[offset] for name in self.columns}
        except (OSError, pa.ArrowException, IndexError) as error:
            self._cursor = None  # it is of no further use
            file, number = self.locate(row)
            raise RowError(f"{file}: row {number} cannot be read {what_to_do(error)}") from error
        return {name: self._bytes_of(cell, name, row) for name, cell in cells.items()}

    def _bytes_of(self, cell: pa.Scalar, column: str, row: int) -> memoryview | None:
        try:
            return bytes_of(cell)
        except ValueError as error:
            file, number = self.locate(row)
            raise RowError(f"{file}: row {number}: {column} {error}") from error

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _whole(self, group: int) -> pa.Table:
        table = self._cache.pop(group, None)
        if table is None:
            table = self._open(group).read_row_group(
                int(self._groups["number"][group]), columns=self.columns, use_threads=False)
        self._cache[group] = table  # now the latest
        # Twice a window: values that several rows share take less room in the file than in memory.
        room = 2 * self.limits.window_bytes if self._keep else 0
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > room:
            self._cache.popitem(last=False)
        return table

    def _stream(self, group: int, offset: int) -> tuple[pa.RecordBatch, int]:
        """Move the cursor on to the window with row `offset` of `group`; also return the row's position in it."""
        if self._cursor is None or self._cursor_group != group or offset < self._batch_start:
            self._batch = None  # before the next is there
            self._cursor = self._open(group).iter_batches(
                batch_size=int(self._groups["window"][group]), row_groups=[int(self._groups["number"][group])],
                columns=self.columns, use_threads=False)
            self._cursor_group, self._batch_start, self._batch = group, 0, self._next_batch()
        while offset >= self._batch_start + len(self._batch):
            self._batch_start += len(self._batch)
            self._batch = None
            self._batch = self._next_batch()
        return self._batch, offset - self._batch_start

    def _next_batch(self) -> pa.RecordBatch:
        batch = next(self._cursor, None)
        if batch is None:
            raise IndexError("there are fewer rows than the file says")
        return batch

    def _open(self, group: int) -> pq.ParquetFile:
        number = int(self._groups["file"][group])
        if number not in self._open_files:
            file = self.sources[number]
            if version(file) != self._versions[number]:
                raise InputError(f"{file}: the file has changed or gone since it was first opened; start again")
            self._open_files[number] = open_parquet(file, self._metadata[number])
        return self._open_files[number]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._keep = not self._small.all()  # of small groups in any order, none is needed twice
        self._open_files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cursor, self._cursor_group, self._batch, self._batch_start = None, -1, None, 0

    def __getstate__(self) -> dict:
        kept = ("files", "columns", "limits", "sources", "_versions", "_metadata", "_groups", "_bytes", "_starts",
                "_count")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

