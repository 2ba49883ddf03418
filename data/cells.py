"""Parquet cells as bytes and text, in whichever column type another program has stored them."""
import numpy as np
import pyarrow as pa

from utils.text import printable

NOT_UTF8 = "is not valid UTF-8 text"
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
         pa.types.is_large_list_view)
BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def column_problem(schema: pa.Schema, column: str, wanted: str) -> str:
    """What keeps a column from being read, as words that follow its name; empty if nothing does.

    Args:
        wanted: "text" or "bytes". Text may be dictionary-encoded. Bytes may also be lists of whole numbers, or a struct
            with the field `bytes`, as the Hugging Face `datasets` library stores images.
    """
    found = schema.names.count(column)
    if found > 1:
        return "is there twice"
    if not found:
        return f"is missing; there are {printable(', '.join(schema.names)) or 'none'}"
    kind = schema.field(column).type
    if _holds_text(kind) if wanted == "text" else _holds_bytes(kind):
        return ""
    if pa.types.is_struct(kind) and wanted == "bytes" and kind.get_field_index("path") >= 0:
        return f"must hold bytes, not the paths of files ({kind}); write the files' contents into a field `bytes`"
    return f"must hold {wanted}, not {kind}"


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in STRINGS)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if any(is_kind(kind) for is_kind in LISTS):
        return pa.types.is_integer(kind.value_type)
    return any(is_kind(kind) for is_kind in BINARIES)


def bytes_of(cell: pa.Scalar) -> memoryview | None:
    """The bytes of a cell of a column in which `column_problem` finds nothing; None if it is null.

    Raises:
        ValueError: there are none, or numbers that are no bytes; the message follows the column's name.
    """
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if isinstance(cell, pa.StructScalar):
        cell = _bytes_field(cell)
    if cell is None or not cell.is_valid:
        return None
    if not hasattr(cell, "values"):
        return memoryview(cell.as_buffer())
    numbers = cell.values
    values = np.asarray(numbers) if not numbers.null_count else np.array([-1])
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        raise ValueError("is a list with something else than numbers from 0 to 255")
    return memoryview(np.ascontiguousarray(values, np.uint8))


def _bytes_field(cell: pa.StructScalar) -> pa.Scalar | None:
    if not cell.is_valid:
        return None
    content = cell["bytes"]
    if not content.is_valid and "path" in cell and cell["path"].is_valid:
        raise ValueError(f"holds the path {printable(str(cell['path']))!r} but not the bytes of that file; "
                         "write the files' contents into the parquet file")
    return content


def decode_texts(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """A text column as large strings, and the rows whose bytes are not UTF-8, which are then replaced by U+FFFD.

    Raises:
        pyarrow.ArrowException: its type cannot be converted.
    """
    stored = column.cast(pa.large_binary())
    try:
        return stored.cast(pa.large_string()), []  # checks the encoding
    except pa.ArrowInvalid:
        texts, wrong = [], []
        for row, content in enumerate(stored.to_pylist()):
            texts.append(content if content is None else content.decode("utf-8", "replace"))
            try:
                _ = content is None or content.decode("utf-8")
            except UnicodeDecodeError:
                wrong.append(row)
        return pa.chunked_array([pa.array(texts, pa.large_string())]), wrong


def without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain string and binary columns in place of view types, which Arrow cannot take rows from."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return pa.schema([field.with_type(plain.get(field.type, field.type)) for field in schema], schema.metadata)


def plain_rows(batch: pa.RecordBatch) -> list[tuple[dict, dict[str, str]]]:
    """The rows of a batch as Python values, each with its unusable cells: column, and words that follow its name.

    Bytes are `bytes`, texts `str`; an unusable cell is None in its row.
    """
    rows = [({}, {}) for _ in range(batch.num_rows)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for (values, reasons), value in zip(rows, _plain_values(column), strict=True):
            values[name] = None if isinstance(value, ValueError) else value
            if isinstance(value, ValueError):
                reasons[name] = str(value)
    return rows


def _plain_values(column: pa.Array) -> list:
    """Python values; a ValueError in place of one that cannot be used."""
    if _holds_text(column.type):
        texts, wrong = decode_texts(pa.chunked_array([column]))
        values = texts.to_pylist()
        for row in wrong:
            values[row] = ValueError(NOT_UTF8)
        return values
    if not _holds_bytes(column.type):
        return column.to_pylist()
    values = []
    for cell in column:
        try:
            content = bytes_of(cell)
            values.append(content if content is None else bytes(content))
        except ValueError as error:
            values.append(error)
    return values
