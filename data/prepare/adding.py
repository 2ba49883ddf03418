"""A parquet file to another with one more column: the fused pictures of its rows."""
import contextlib

import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import naming
from utils.files import replacing
from utils.progress import progress_bar
from utils.text import counted, printable

from ..columns import FUSED, SCHEMA_WITH_FUSED, read_columns
from ..fused_pictures import match_rows
from ..parquet_rows import open_parquet
from .building import Mistakes, decoded, read_file
from .merging import check_schema, read_batches, writable
from .outputs import check_outputs


def add_fused(source: str, folder: str, out: str) -> list[str]:
    """Write the rows of `source` to `out`, each with the bytes of its fused picture; all of them or nothing.

    Reads a few rows at a time. A column `fused_image` that is there already is replaced.

    Args:
        folder: of the pictures, see `fused_pictures.match_rows`.
    Returns:
        A sentence on the file, and one on pictures that belong to no row.
    Raises:
        UsageError: `out` lies in no folder, or is read.
        InputError: the file cannot be read; or rows have no picture, or one that cannot be decoded: all of them listed.
    """
    check_outputs([out], [source])
    file = open_parquet(source)
    check_schema(source, file.schema_arrow, source, file.schema_arrow)
    names, _, indices, _ = read_columns(source, [source], [])
    with naming("fused"):
        paths, alone = match_rows(folder, names, indices)
    mistakes = Mistakes()
    rows = [f"row {row} (image_name {printable(name)}, index {index})"
            for row, (name, index) in enumerate(zip(names, indices, strict=True))]
    for row, path in zip(rows, paths, strict=True):
        if path is None:
            mistakes.add(f"{source}: {row}", f"{printable(folder)} has no picture of it")
    mistakes.stop_if_any()
    check_outputs([out], [path for path in paths if path])
    _write(source, file, paths, rows, out)
    notes = [f"note: no row is that of {counted(len(alone), 'picture')} in {printable(folder)}, the first is "
             f"{printable(alone[0])}"] if alone else []
    return [f"wrote {out}: {counted(len(paths), 'row')}, {counted(len(set(paths)), 'fused picture')}", *notes]


def _write(source: str, file: pq.ParquetFile, paths: list[str], rows: list[str], out: str) -> None:
    schema = file.schema_arrow
    schema = writable(schema.remove(schema.get_field_index(FUSED)) if FUSED in schema.names else schema)
    wide = schema.append(SCHEMA_WITH_FUSED.field(FUSED))
    mistakes, first = Mistakes(), 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(stack.enter_context(replacing(out)), wide))
        bar = stack.enter_context(progress_bar(total=len(paths), desc="writing", unit="row"))
        for batch in read_batches(source, file, schema):
            contents = []
            for row in range(first, first + len(batch)):
                try:
                    contents.append(read_file(paths[row]))
                    decoded(paths[row], contents[-1])
                except ValueError as error:
                    mistakes.add(f"{source}: {rows[row]}", str(error))
            first += len(batch)
            bar.update(len(batch))
            if not mistakes.count:  # otherwise nothing will be written; look for further mistakes
                writer.write_table(batch.append_column(wide.field(FUSED), pa.array(contents, pa.binary())))
        mistakes.stop_if_any()
