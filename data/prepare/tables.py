"""Referring expressions as people write them down: tables, lists of objects, and the files of annotation tools."""
import csv
import io
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from utils.text import first_line, printable, printable_value

from .tools import is_coco, is_labelme, read_coco, read_labelme

NEEDED = ("image", "expression")
SHAPES = ("mask", "polygon", "rle")  # an entry has one of these, or a file in the folder of masks
TABLES = (".csv", ".tsv", ".json", ".jsonl")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # semicolons: Excel where the comma is a decimal sign


class Entry(NamedTuple):
    """One object and a sentence that refers to it."""

    where: str  # "captions.csv, line 3"
    image: str
    expression: str
    shape: str | None  # one of SHAPES; None: the mask of the image's own name
    value: str | list | dict | None  # name of the mask, polygon or RLE as written
    by_category: bool = False  # the expression is no more than the name of the object's category


def read_table(path: str) -> Iterator[tuple[str, Entry | str]]:
    """The entries of a table, in order, each after where it stands; instead of an entry that is wrong, the reason.

    Args:
        path: `.csv` or `.tsv` with a header, separated by commas, semicolons or tabs; `.json` (a list of objects, or
            COCO's annotations); `.jsonl` (one object a line); UTF-8 or UTF-16. Columns or keys are `image`,
            `expression` and, as wanted, `mask`, `polygon`, `rle`; others are ignored. Or a folder of LabelMe's files.
    Raises:
        ValueError: nothing can be read from it; says why.
        OSError: the file cannot be opened.
    """
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            if name.lower().endswith(".json") and os.path.isfile(os.path.join(path, name)):
                yield from _read_file(os.path.join(path, name))
        return
    yield from _read_file(path)


def _read_file(path: str) -> Iterator[tuple[str, Entry | str]]:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in TABLES:
        raise ValueError(f"must be one of {', '.join(TABLES)}, or a folder of LabelMe's .json files; export a "
                         "spreadsheet as CSV")
    read = {".json": _read_json, ".jsonl": _read_json_lines}.get(suffix, read_csv)
    try:
        for position, record in read(read_text(path)):
            where = f"{printable(path)}, {position}"
            if isinstance(record, str):
                yield where, record
                continue
            try:
                yield where, _to_entry(where, record)
            except ValueError as error:
                yield where, str(error)
    except csv.Error as error:
        raise ValueError(f"is not a table ({error})") from error


def read_text(path: str) -> str:
    """The content of a text file, whichever of the usual encodings it has."""
    with open(path, "rb") as file:
        content = file.read()
    encoding = "utf-8-sig"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as Excel saves "Unicode text"
        encoding = "utf-16"
    elif content[1:2] == b"\0":
        encoding = "utf-16-le"
    elif content[:1] == b"\0":
        encoding = "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        raise ValueError(f"is not {name} text (byte {error.start}); save it as \"CSV UTF-8\" or the like") from error


def read_csv(text: str, needed: tuple[str, ...] = NEEDED, optional: tuple[str, ...] | None = None
             ) -> Iterator[tuple[str, dict | str]]:
    """The records of a table with a header, each after its line; instead of a record that is wrong, the reason.

    Args:
        text: cells are separated by commas, semicolons or tabs.
        needed: columns that must be there.
        optional: the only others that may be; None: any.
    Raises:
        ValueError: the header does not do; says why.
        csv.Error: it is no table.
    """
    csv.field_size_limit(2**31 - 1)  # a polygon may be longer than the default of 128 kB
    separator, start = _separator(text, needed)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    for _ in range(start):
        next(rows)
    header = [name.strip() for name in next(rows, [])]
    for name in needed:
        if name not in header:
            raise ValueError(f"has no column {name}; its first line is {printable(', '.join(header)) or 'empty'}")
    if optional is not None and (unknown := [name for name in header if name not in (*needed, *optional)]):
        raise ValueError(f"has columns that are not known: {printable(', '.join(unknown)) or 'one without a name'}; it "
                         f"may have {', '.join((*needed, *optional))}")
    if len(set(header)) < len(header):
        raise ValueError("has two columns of the same name")
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            yield f"line {rows.line_num}", (f"has {len(row)} cells, the first line {len(header)} (a text with "
                                            f"{SEPARATORS[separator]} needs quotation marks around it)")
        else:
            yield f"line {rows.line_num}", dict(zip(header, row, strict=True))


def _separator(text: str, needed: tuple[str, ...]) -> tuple[str, int]:
    """What separates the cells, and the number of lines before the header: Excel's own `sep=;` may stand there."""
    first = text.split("\n", 1)[0].strip().lower()
    start = int(first.startswith("sep="))
    for separator in SEPARATORS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            header = [[name.strip() for name in next(rows, [])] for _ in range(start + 1)][-1]
        except csv.Error:  # such as a quotation mark that is never closed
            continue
        if set(needed) <= set(header):
            return separator, start
    return ",", start


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number of too many digits
        raise ValueError(f"is not JSON ({first_line(error)})") from error


def _read_json(text: str) -> Iterator[tuple[str, dict | str]]:
    content = _parse(text)
    if is_coco(content):
        yield from read_coco(content)
    elif is_labelme(content):
        yield from read_labelme(content)
    elif isinstance(content, list):
        for number, record in enumerate(content, start=1):
            yield f"entry {number}", record if isinstance(record, dict) else "is not an object in braces"
    else:
        raise ValueError(f"must hold a list of objects with {' and '.join(NEEDED)}, or be a file of COCO or LabelMe")


def _read_json_lines(text: str) -> Iterator[tuple[str, dict | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
        except ValueError as error:
            yield f"line {number}", str(error)
        else:
            yield f"line {number}", record if isinstance(record, dict) else "is not an object in braces"


def _to_entry(where: str, record: dict) -> Entry:
    image, expression = (nonempty_text(record.get(key), key) for key in NEEDED)
    shapes = {key: record[key] for key in SHAPES if record.get(key) not in (None, "", [], {})}
    if len(shapes) > 1:
        raise ValueError(f"has {' and '.join(shapes)}; give one of them")
    shape, value = next(iter(shapes.items()), (None, None))
    if shape == "mask":
        value = nonempty_text(value, "mask")
    if shape in ("polygon", "rle") and isinstance(value, str):
        try:
            value = _parse(value)
        except ValueError as error:
            raise ValueError(f"{shape} {error}") from error
    return Entry(where, image, expression, shape, value, record.get("by_category") is True)


def nonempty_text(value: object, key: str) -> str:
    """The text in a cell or under a key, without white space around it.

    Raises:
        ValueError: there is none, or it is no text.
    """
    if value is None:
        raise ValueError(f"{key} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text")
    if not value.strip():
        raise ValueError(f"{key} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} is {printable_value(value)}, which holds half a character") from error
    return value.strip()
