"""Referring expressions as people write them down: a table, and objects as mask files, polygons or COCO RLEs."""
import csv
import io
import json
import math
import os
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ..decode import decode_image, decode_mask

NEEDED = ("image", "expression")
SHAPES = ("mask", "polygon", "rle")  # an entry has one of these, or a file in the folder of masks
TABLES = (".csv", ".tsv", ".json", ".jsonl")
FAR = 10  # a corner this many image sides away is a mistake, and costs memory


class Entry(NamedTuple):
    """One line of a table."""

    place: str  # "captions.csv, line 3"
    image: str
    expression: str
    shape: str | None  # one of SHAPES; None: the mask of the image's own name
    value: str | list | dict | None  # name of the mask, polygon or RLE as written


def read_table(path: str) -> Iterator[tuple[str, Entry | str]]:
    """The entries of a table, in order, each after its place; instead of an entry that is wrong, the reason.

    Args:
        path: `.csv` or `.tsv` with a header, `.json` (a list of objects) or `.jsonl` (one object a line); columns or
            keys `image`, `expression` and, as wanted, `mask`, `polygon`, `rle`. Others are not looked at.
    Raises:
        ValueError: nothing can be read from it; says why.
        OSError: the file cannot be opened.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in TABLES:
        raise ValueError(f"must be one of {', '.join(TABLES)}")
    read = {".json": _read_json, ".jsonl": _read_json_lines}.get(ending, _read_csv)
    try:
        for number, record in read(path):
            place = f"{path}, {number}"
            if isinstance(record, str):
                yield place, record
                continue
            try:
                yield place, _to_entry(place, record)
            except ValueError as error:
                yield place, str(error)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise ValueError(f"is not a table ({error})") from error


def _read_csv(path: str) -> Iterator[tuple[str, dict | str]]:
    csv.field_size_limit(2**31 - 1)  # a polygon may be longer than the default of 128 kB
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
        header = [name.strip() for name in next(rows, [])]
        for name in NEEDED:
            if name not in header:
                raise ValueError(f"has no column {name}; its first line is {', '.join(header) or 'empty'}")
        if len(set(header)) < len(header):
            raise ValueError("has two columns of the same name")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                yield f"line {rows.line_num}", (f"has {len(row)} cells, the first line {len(header)} "
                                                "(a text with commas needs quotation marks around it)")
            else:
                yield f"line {rows.line_num}", dict(zip(header, row, strict=True))


def _read_json(path: str) -> Iterator[tuple[str, dict | str]]:
    with open(path, encoding="utf-8-sig") as file:
        try:
            records = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(records, list):
        raise ValueError(f"must hold a list of objects with {' and '.join(NEEDED)}")
    for number, record in enumerate(records, start=1):
        yield f"entry {number}", record if isinstance(record, dict) else "is not an object in braces"


def _read_json_lines(path: str) -> Iterator[tuple[str, dict | str]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield f"line {number}", f"is not JSON ({error})"
            else:
                yield f"line {number}", record if isinstance(record, dict) else "is not an object in braces"


def _to_entry(place: str, record: dict) -> Entry:
    for key in NEEDED:
        text = record.get(key)
        if text is None:
            raise ValueError(f"{key} is missing")
        if not isinstance(text, str):
            raise ValueError(f"{key} must be text")
        if not text.strip():
            raise ValueError(f"{key} is empty")
    shapes = {key: record[key] for key in SHAPES if record.get(key) not in (None, "", [], {})}
    if len(shapes) > 1:
        raise ValueError(f"has {' and '.join(shapes)}; one of them must do")
    shape, value = next(iter(shapes.items()), (None, None))
    if shape == "mask" and not isinstance(value, str):
        raise ValueError("mask must be the name of a file")
    if shape in ("polygon", "rle") and isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{shape} is not JSON ({error})") from error
    return Entry(place, record["image"].strip(), record["expression"].strip(), shape, value)


class Folder:
    """The pictures below a folder, found by name with or without its ending.

    Args:
        path: the folder; one that does not exist has no files.
        more: endings to take besides those that Pillow reads.
    """

    def __init__(self, path: str, more: tuple[str, ...] = ()):
        self.path = path
        endings = {*Image.registered_extensions(), *more}
        self.files: dict[str, str] = {}  # name relative to the folder, with forward slashes: path
        self._stems: dict[str, list[str]] = {}
        for root, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                stem, ending = os.path.splitext(name)
                if ending.lower() in endings and not name.startswith("."):
                    within = os.path.relpath(root, path).replace(os.sep, "/")
                    self.files[posixpath.normpath(posixpath.join(within, name))] = os.path.join(root, name)
                    self._stems.setdefault(posixpath.normpath(posixpath.join(within, stem)), []).append(name)

    def find(self, name: str) -> str:
        """The key in `files` of the picture `name`; another ending will do where there is just one such file.

        Raises:
            ValueError: there is none, or there are several; says so.
        """
        name = posixpath.normpath(name.replace("\\", "/"))
        if name in self.files:
            return name
        for stem in (name, os.path.splitext(name)[0]):
            found = self._stems.get(stem, [])
            if len(found) > 1:
                raise ValueError(f"{self.path} has several pictures of this name: {', '.join(found)}")
            if found:
                return posixpath.join(posixpath.dirname(stem), found[0])
        if not os.path.isdir(self.path):
            raise ValueError(f"there is no folder {self.path}")
        raise ValueError(f"{self.path} has no picture {name!r}")


def mask_from_file(content: bytes, name: str) -> np.ndarray:
    """The mask in a picture, or in a `.npy` file.

    Whatever is above 0 in any channel but alpha belongs to the object; in a JPEG, which blurs edges, above 127.

    Returns:
        (h, w) uint8 of 0 and 1.
    Raises:
        ValueError: it cannot be decoded.
    """
    if name.lower().endswith(".npy"):
        return decode_mask(content)
    colours = decode_image(content)
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == "F" or image.mode.startswith("I"):  # instance numbers beyond 8 bits, which decoding scales
            return (np.asarray(image) > 0).astype(np.uint8)
        least = 127 if image.format == "JPEG" else 0
    return (colours > least).any(axis=2).astype(np.uint8)


def mask_from_polygon(value, height: int, width: int) -> np.ndarray:
    """Rasterise a polygon as COCO does; parts of it are united.

    Args:
        value: `[x1, y1, x2, y2, …]`, or `[[x1, y1], [x2, y2], …]`, or a list of either; pixels, (0, 0) the upper left.
    Returns:
        (height, width) uint8 of 0 and 1.
    Raises:
        ValueError: it is something else.
    """
    parts = _polygon_parts(value)
    for part in parts:
        if len(part) < 6 or len(part) % 2:
            raise ValueError("polygon must have three corners or more, each of an x and a y")
        if not all(math.isfinite(number) for number in part):
            raise ValueError("polygon has a coordinate that is no number")
        if max(map(abs, part)) > FAR * max(height, width):
            raise ValueError(f"polygon has the coordinate {max(part, key=abs):g}, far outside the image of "
                             f"{width} x {height} pixels")
    mask = coco.decode(coco.merge(coco.frPyObjects(parts, height, width)))
    if not mask.any():
        raise ValueError(f"polygon covers no pixel of the image of {width} x {height} pixels")
    return mask


def _polygon_parts(value) -> list[list[float]]:
    def numbers(items) -> bool:
        return isinstance(items, list) and all(isinstance(item, int | float) for item in items)

    def pairs(items) -> bool:
        return isinstance(items, list) and all(numbers(item) and len(item) == 2 for item in items)

    if numbers(value) or pairs(value):
        value = [value]
    if isinstance(value, list) and all(numbers(part) or pairs(part) for part in value):
        return [[float(number) for corner in part for number in corner] if pairs(part) else list(map(float, part))
                for part in value]
    raise ValueError("polygon must be a list of coordinates, as in [10, 10, 50, 10, 50, 40]")


def mask_from_rle(value, height: int, width: int) -> np.ndarray:
    """Unpack a COCO run-length encoding.

    Args:
        value: `{"size": [height, width], "counts": …}`, the counts compressed (text) or not (a list).
    Returns:
        (height, width) uint8 of 0 and 1.
    Raises:
        ValueError: it is something else, or of another size.
    """
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise ValueError('rle must be {"size": [height, width], "counts": text or list}')
    if value.get("size") != [height, width]:
        raise ValueError(f"rle has the size {value.get('size')} (height, width), the image is {height} high and "
                         f"{width} wide")
    counts = value["counts"]
    if isinstance(counts, str):
        counts = _unpack_counts(counts)
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"rle has counts that do not add up to {height} x {width} pixels")
    return coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _unpack_counts(text: str) -> list[int]:
    """COCO's compressed counts as numbers; pycocotools does not check them, and reads memory that is not theirs.

    A letter holds five bits, the lowest first, and whether more follow; the last one's highest bit is the sign. From
    the fourth on, a number is the difference to the one before the last.
    """
    counts, number, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"rle has counts with the letter {letter!r}")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << 1 << (shift - 5)
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number, shift = 0, 0
    if shift:
        raise ValueError("rle has counts that are cut short")
    return counts
