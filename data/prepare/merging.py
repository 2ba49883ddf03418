"""Parquet files to others of the same columns in small row groups: joined, or dealt out image by image."""
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError, UsageError
from utils.files import replacing
from utils.locations import is_file
from utils.progress import progress_bar
from utils.text import counted, first_line

from ..cells import bytes_of, column_problem, decode_texts, without_views
from ..columns import IMAGES
from ..parquet_rows import ROWS_PER_GROUP, open_parquet
from .outputs import check_outputs
from .splitting import split_by_image

NAME = "image_name"


def merge(parts: list[str], outs: list[str], shares: list[float], seed: int) -> list[str]:
    """Write the rows of `parts` to `outs`, in order, in row groups of ROWS_PER_GROUP.

    Reads a few rows at a time. The files appear, or are replaced, only once all of them are complete.

    Args:
        shares: of the images, for each of `outs`, adding up to 1; a file with a share of 0 is not written. With several
            files, rows that share an image's name or bytes stay together.
        seed: of that choice.
    Returns:
        A sentence on each file.
    Raises:
        UsageError: a part does not exist, or is one of `outs`; an output lies in no folder; too few images for
            `shares`.
        InputError: a part cannot be read, or its columns are not those of the first.
    """
    outs = {number: out for number, (out, share) in enumerate(zip(outs, shares, strict=True)) if share}
    for part in parts:
        if not is_file(part):
            raise UsageError(f"{part}: there is no such file; nothing was written")
    check_outputs(outs.values(), parts)
    files = [open_parquet(part) for part in parts]
    for part, file in zip(parts, files, strict=True):
        check_schema(parts[0], files[0].schema_arrow, part, file.schema_arrow)
    schema = writable(files[0].schema_arrow)
    sources = list(zip(parts, files, strict=True))
    total = sum(file.metadata.num_rows for file in files)
    if len(shares) == 1:
        write(sources, schema, np.zeros(total, np.int8), outs)
        return [f"wrote {outs[0]}: {counted(total, 'row')} from {counted(len(parts), 'file')}"]

    check_images(parts[0], schema)
    names = []  # of each row's image

    def digests_by_name() -> Iterator[tuple[str, list[bytes]]]:
        with progress_bar(total=total, desc="comparing images", unit="row") as bar:
            for name, digests in read_images(sources, schema):
                names.append(name)
                bar.update()
                yield name, digests

    part_of = split_by_image(digests_by_name(), shares, seed)
    numbers = np.array([part_of[name] for name in names], np.int8)
    write(sources, schema, numbers, outs)
    rows, images = Counter(numbers.tolist()), Counter(part_of.values())
    return [f"wrote {out}: {counted(rows[number], 'row')}, {counted(images[number], 'image')}"
            for number, out in outs.items()]


def writable(schema: pa.Schema) -> pa.Schema:
    """The schema in which rows of another are written: all columns may be empty, none is a view."""
    return without_views(pa.schema([field.with_nullable(True) for field in schema], schema.metadata))


def write(sources: list[tuple[str, pq.ParquetFile]], schema: pa.Schema, numbers: np.ndarray, outs: dict[int, str]
          ) -> None:
    """Write row i of all sources to `outs[numbers[i]]`."""
    with contextlib.ExitStack() as stack:
        temporary = {number: stack.enter_context(replacing(out)) for number, out in outs.items()}
        # Entered later, so left earlier: all files are complete before the first is put in its place.
        writers = {number: stack.enter_context(pq.ParquetWriter(path, schema)) for number, path in temporary.items()}
        waiting = {number: schema.empty_table() for number in outs}  # rows short of a full group
        bar = stack.enter_context(progress_bar(total=len(numbers), desc="writing", unit="row"))
        row = 0
        for part, file in sources:
            for batch in read_batches(part, file, schema):
                here = numbers[row:row + len(batch)]
                for number in np.unique(here).tolist():
                    waiting[number] = pa.concat_tables([waiting[number], batch.filter(pa.array(here == number))])
                    while len(waiting[number]) >= ROWS_PER_GROUP:
                        writers[number].write_table(waiting[number].slice(0, ROWS_PER_GROUP))
                        waiting[number] = waiting[number].slice(ROWS_PER_GROUP)
                row += len(batch)
                bar.update(len(batch))
        for number, left in waiting.items():
            if len(left):
                writers[number].write_table(left)


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


def check_images(part: str, schema: pa.Schema) -> None:
    """Check that there are the columns that tell images apart."""
    for columns, wanted in (((NAME,), "text"), (IMAGES, "bytes")):
        for name in columns:
            if problem := column_problem(schema, name, wanted):
                raise InputError(f"{part}: column {name} {problem}; a split tells images apart by it")


def read_images(sources: list[tuple[str, pq.ParquetFile]], schema: pa.Schema) -> Iterator[tuple[str, list[bytes]]]:
    """Each row's image name, empty where there is none, and the digests of the images in it."""
    schema = pa.schema([schema.field(name) for name in (NAME, *IMAGES)])
    for part, file in sources:
        for batch in read_batches(part, file, schema):
            names = decode_texts(batch[NAME])[0].to_pylist()
            for name, *images in zip(names, *(batch[column] for column in IMAGES), strict=True):
                yield name or "", [digest for image in images if (digest := digest_of(image))]


def digest_of(image: pa.Scalar) -> bytes | None:
    """A digest of the image in a cell; None where there is none, or only the path of a file."""
    try:
        content = bytes_of(image)
    except ValueError:
        return None
    return None if content is None else hashlib.sha256(content).digest()


def read_batches(part: str, file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of one part, a group's worth at a time, as tables of `schema`; other columns are not read."""
    batches = file.iter_batches(batch_size=ROWS_PER_GROUP, columns=schema.names, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{part}: it cannot be read ({first_line(error)}); "
                             "the file is damaged, download it again") from error
        yield table
