"""Merge parquet files into one with small row groups.

    python data/merge_parquet.py                                  # part1 and part2 of the MM-RIS training set
    python data/merge_parquet.py PART [PART ...] --out FILE

A single PART is rewritten: MM-RIS readers fetch a whole row group per sample, so shuffled training wants them small.
"""
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from data.parquet_rows import ROWS_PER_GROUP, first_line, open_parquet
from utils.errors import InputError, UsageError, run
from utils.files import replacing
from utils.flags import ArgumentParser
from utils.progress import progress_bar
from utils.text import counted

DEFAULT_PARTS = ["./data/mm_ris_train_part1.parquet", "./data/mm_ris_train_part2.parquet"]
DEFAULT_OUT = "./data/mm_ris_train.parquet"


def merge(parts: list[str], out: str) -> int:
    """Write the rows of `parts`, in order, to `out`, in row groups of ROWS_PER_GROUP; return their number.

    Reads a few rows at a time. `out` appears, or is replaced, only once it is complete.

    Raises:
        UsageError: a part does not exist, or is `out` itself; `out` lies in no folder.
        InputError: a part cannot be read, or its columns are not those of the first.
    """
    for part in parts:
        if not os.path.isfile(part):
            raise UsageError(f"{part}: there is no such file; nothing was written")
        if os.path.exists(out) and os.path.samefile(part, out):
            raise UsageError(f"--out: {out} is one of the parts; give another name")
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))) or os.path.isdir(out):
        raise UsageError(f"--out: {out} is not a file name in an existing folder")
    files = [open_parquet(part) for part in parts]
    for part, file in zip(parts, files, strict=True):
        check_schema(parts[0], files[0].schema_arrow, part, file.schema_arrow)
    schema = files[0].schema_arrow
    schema = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    total = sum(file.metadata.num_rows for file in files)
    bar = progress_bar(total=total, desc=os.path.basename(out), unit="row")
    with replacing(out) as temporary, bar, pq.ParquetWriter(temporary, schema) as writer:
        waiting = schema.empty_table()  # rows short of a full group, across the end of a part
        for part, file in zip(parts, files, strict=True):
            for batch in read_batches(part, file, schema):
                waiting = pa.concat_tables([waiting, batch])
                while len(waiting) >= ROWS_PER_GROUP:
                    writer.write_table(waiting.slice(0, ROWS_PER_GROUP), row_group_size=ROWS_PER_GROUP)
                    waiting = waiting.slice(ROWS_PER_GROUP)
                bar.update(len(batch))
        if len(waiting):
            writer.write_table(waiting)
    return total


def check_schema(first: str, expected: pa.Schema, part: str, found: pa.Schema) -> None:
    """Compare names and types of the columns; their order and notes about them may differ."""
    for name in dict.fromkeys([*expected.names, *found.names]):
        if name not in found.names:
            raise InputError(f"{part}: column {name} is missing, which {first} has")
        if name not in expected.names:
            raise InputError(f"{part}: column {name} is not in {first}")
        if found.names.count(name) > 1 or expected.names.count(name) > 1:
            raise InputError(f"{part}: column {name} occurs twice in it or in {first}")
        if found.field(name).type != expected.field(name).type:
            raise InputError(f"{part}: column {name} holds {found.field(name).type}, "
                             f"but {expected.field(name).type} in {first}")


def read_batches(part: str, file: pq.ParquetFile, schema: pa.Schema):
    """The rows of one part, a group's worth at a time, as tables of `schema`."""
    batches = file.iter_batches(batch_size=ROWS_PER_GROUP, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{part}: it cannot be read ({first_line(error)}); "
                             "the file is damaged, download it again") from error
        if batch is None:
            return
        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(
        description="Merge MM-RIS parquet files into one with small row groups, which shuffled training reads fast.",
        epilog=f"Without arguments: {' and '.join(DEFAULT_PARTS)} into {DEFAULT_OUT}.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="parquet files of the same columns, in order")
    parser.add_argument("--out", metavar="FILE", help="parquet file to write; needed when parts are given")
    args = parser.parse_args(arguments)
    if args.parts and not args.out:
        parser.error("--out FILE is needed when parts are given")
    if args.out and not args.parts:
        parser.error("--out is given, but no part to merge")
    parts, out = args.parts or DEFAULT_PARTS, args.out or DEFAULT_OUT
    rows = merge(parts, out)
    print(f"wrote {out}: {counted(rows, 'row')} from {counted(len(parts), 'file')}")


if __name__ == "__main__":
    run(main)
