"""The columns of the MM-RIS schema: texts and indices of all rows in memory, and what is wrong with them."""
import logging
import operator
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.errors import InputError

from .cells import NOT_UTF8, column_problem, decode_texts
from .parquet_rows import open_parquet, what_to_do

SCHEMA = pa.schema([
    ("index", pa.int64()), ("image_name", pa.string()), ("visible_image", pa.binary()),
    ("infrared_image", pa.binary()), ("question", pa.string()), ("segmentation", pa.binary())])
TEXT = ("image_name", "question")
IMAGES = ("visible_image", "infrared_image")
MASK = "segmentation"
FUSED = "fused_image"  # optional: what some fusion method has made of the two images
SCHEMA_WITH_FUSED = SCHEMA.append(pa.field(FUSED, pa.binary()))
NULL, NO_WORDS = "is empty (null)", "is empty (no words)"  # why a row is unusable; follows the column's name

logger = logging.getLogger(__name__)


class Column(Sequence):
    """Values of many rows in one Arrow array, which behaves like a list of them; slices are lists.

    Worker processes share its memory. A list of Python objects takes several times as much, and each worker process
    would copy it page by page, because reading an object writes its reference count.
    """

    def __init__(self, values: pa.Array):
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return self._values[position].to_pylist()
        return self._values[operator.index(position)].as_py()

    def __iter__(self):
        for start in range(0, len(self), 1024):
            yield from self._values.slice(start, 1024).to_pylist()

    def __eq__(self, other) -> bool:
        if isinstance(other, Column):
            return self._values.equals(other._values)
        return list(self) == other

    __hash__ = None

    def __repr__(self) -> str:
        return f"Column of {len(self)}: {self[:3]} …"

    def take(self, rows: np.ndarray) -> "Column":
        """The values of `rows`, in their order."""
        return Column(self._values.take(pa.array(rows)))


def read_columns(path: str, files: list[str], byte_columns: list[str]) -> tuple[Column, Column, Column, dict[int, str]]:
    """Read the small columns of a data set, and check the schema of each file.

    Args:
        path: what the user named, for messages.
        files: parquet files whose rows follow one another.
        byte_columns: names of further columns that must exist and hold bytes; they are not read.
    Returns:
        `image_name`, `question` and `index` of all rows, and a dict with a sentence for each row (counted over all
        files, from 0) of which one of the texts is missing or not valid UTF-8. A missing text reads as an empty string.
        The index of a row is its number if the column is absent or does not tell the rows apart.
    Raises:
        InputError: columns are missing, of the wrong type or damaged, or there are no rows.
    """
    tables, problems, rows = [], {}, 0
    for file in files:
        table, not_utf8 = _read_file(file, byte_columns)
        for column in TEXT:
            unusable = dict(_missing(table[column], column)) | dict.fromkeys(not_utf8[column], NOT_UTF8)
            for row, reason in unusable.items():
                problems.setdefault(rows + row, f"{file}: row {row}: {column} {reason}")
        tables.append(table)
        rows += len(table)
    if not rows:
        raise InputError(f"{path}: there are no rows in it")
    names, questions = (
        Column(pa.concat_arrays([chunk.fill_null("") for table in tables for chunk in table[column].chunks]))
        for column in TEXT)
    return names, questions, Column(_usable_indices(path, tables, rows)), problems


def _read_file(file: str, byte_columns: list[str]) -> tuple[pa.Table, dict[str, list[int]]]:
    """`image_name` and `question` as large strings, `index` where there is one; and the rows that are not UTF-8."""
    parquet = open_parquet(file)
    schema = parquet.schema_arrow
    for columns, wanted in ((TEXT, "text"), (byte_columns, "bytes")):
        for column in columns:
            if problem := column_problem(schema, column, wanted):
                advice = "; data/add_fused.py adds it from a folder of pictures" if column == FUSED else ""
                raise InputError(f"{file}: column {column} {problem}{advice}")
    small = [*TEXT, "index"] if "index" in schema.names else list(TEXT)
    try:
        table, not_utf8 = parquet.read(columns=small, use_threads=False), {}
        for column in TEXT:
            texts, not_utf8[column] = decode_texts(table[column])
            table = table.set_column(table.schema.get_field_index(column), column, texts)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: columns {', '.join(small)} cannot be read {what_to_do(error)}") from error
    if len(table) != parquet.metadata.num_rows:
        raise InputError(f"{file}: it has {len(table)} rows but says {parquet.metadata.num_rows}; the file is damaged, "
                         "download or write it again")
    return table, not_utf8


def _missing(texts: pa.ChunkedArray, column: str):
    """Rows without a text, and why. A name may be blank; without a sentence there is nothing to look for."""
    for row in np.flatnonzero(texts.is_null().to_numpy()).tolist():
        yield row, NULL
    if column == "question":
        blank = pc.equal(pc.utf8_trim_whitespace(texts), "").fill_null(False)
        for row in np.flatnonzero(blank.to_numpy()).tolist():
            yield row, NO_WORDS


def _usable_indices(path: str, tables: list[pa.Table], rows: int) -> pa.Array:
    """The `index` columns as one array of int64, or the row numbers where they do not tell rows apart."""
    numbers = pa.array(np.arange(rows))
    columns = [table["index"] for table in tables if "index" in table.column_names]
    if not columns:
        return numbers
    if len(columns) < len(tables):
        problem = "is missing from some of the files"
    elif not all(pa.types.is_integer(column.type) and not column.null_count for column in columns):
        problem = "holds empty cells or something else than whole numbers"
    else:
        chunks = [chunk.cast(pa.int64(), safe=False) for column in columns for chunk in column.chunks]
        values = pa.concat_arrays(chunks)
        if len(pc.unique(values)) == rows:
            return values
        problem = "gives the same number to several rows"
    logger.warning("%s: the index column %s; the row numbers are used instead", path, problem)
    return numbers
