"""Folders and a table to parquet files of the MM-RIS schema, a row at a time."""
import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import InputError, naming
from utils.files import replacing
from utils.progress import progress_bar
from utils.text import counted, printable

from ..columns import FUSED, SCHEMA, SCHEMA_WITH_FUSED
from ..decode import decode_image, read_mask
from ..fused_pictures import match_rows
from ..pairing import INFRARED_WORDS, MASK_WORDS, VISIBLE_WORDS
from ..parquet_rows import ROWS_PER_GROUP
from ..pictures import oddities_of_pair, orientation, read_bytes
from .folders import Folder, Partners
from .outputs import check_outputs
from .shapes import mask_from_polygon, mask_from_rle
from .splitting import split_by_image
from .tables import Entry, read_table

SHOWN = 20  # mistakes listed one by one


class Item(NamedTuple):
    """An entry of the table with its files found."""

    entry: Entry
    name: str  # of the visible image within its folder
    visible: str  # paths
    infrared: str
    mask: str | None  # None: the entry has a polygon or an RLE
    fused: str | None = None  # None: the data set gets no such column


class Mistakes:
    """Sentences about what is wrong; the first SHOWN are kept."""

    def __init__(self):
        self.count = 0
        self._sentences: list[str] = []

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self._sentences.append(f"{where}: {reason}")

    def stop_if_any(self) -> None:
        """Raises:
            InputError: with all sentences, if there are some.
        """
        if self.count > SHOWN:
            self._sentences.append(f"and {self.count - SHOWN} more")
        if self.count > 1:
            raise InputError("\n  ".join([f"{self.count} mistakes; nothing was written", *self._sentences]))
        if self.count:
            raise InputError(f"{self._sentences[0]}; nothing was written")


def build(table: str, folders: tuple[str, str, str], outs: list[str], shares: list[float], seed: int,
          fused: str | None = None) -> list[str]:
    """Write the entries of `table` to parquet files, all of them or, if anything is wrong, none.

    Memory holds the whole table, and the images of one row group for each file.

    Args:
        table: see `tables.read_table`.
        folders: of the visible images, the infrared images and the masks.
        outs: the files to write.
        shares: of the images, for each file, adding up to 1; images that share a file's content stay together.
        seed: of the choice; the same images, shares and seed give the same parts, whatever the table's order.
        fused: folder of fused pictures for the column `fused_image`, see `fused_pictures.match_rows`; None: no column.
    Returns:
        A sentence on each file that was written, and on each kind of oddity.
    Raises:
        InputError: mistakes in table, images or masks, each with the line or entry.
        UsageError: there are fewer images than parts; or a file to write lies in no folder or is read, too.
    """
    check_outputs(outs, [table])
    items, notes = find_files(table, folders)
    if fused is not None:
        items = with_fused(items, fused)
    read = {path for item in items for path in (item.visible, item.infrared, item.mask, item.fused) if path}
    check_outputs(outs, [table, *read])
    parts = [0] * len(items)
    if len(outs) > 1:
        part_of = split_by_image(digests_of(items), shares, seed)
        parts = [part_of[item.name] for item in items]
    return write(items, parts, outs) + notes


def find_files(table: str, folders: tuple[str, str, str]) -> tuple[list[Item], list[str]]:
    """Read the table and find the files of each entry; also sentences on what looks odd."""
    find, items, mistakes = Finder(folders), [], Mistakes()
    try:
        for where, entry in read_table(table):
            if isinstance(entry, str):
                mistakes.add(where, entry)
                continue
            try:
                items.append(find.files_of(entry))
            except ValueError as error:
                mistakes.add(where, str(error))
    except ValueError as error:
        raise InputError(f"{table}: {error}") from error
    except OSError as error:
        raise InputError(f"{table}: it cannot be read ({error.strerror})") from error
    mistakes.stop_if_any()
    if not items:
        raise InputError(f"{table}: there are no entries in it")
    notes = []
    if by_category := [item.entry for item in items if item.entry.by_category]:
        notes.append(f"note: the expression is no more than the name of a category or label for "
                     f"{counted(len(by_category), 'object')}, the first is {by_category[0].where}: "
                     f"{printable(by_category[0].expression)}")
    unused = sorted(find.visible.files.keys() - {item.name for item in items})
    if unused:
        notes.append(f"note: no entry names {counted(len(unused), 'image')} in {folders[0]}, the first is "
                     f"{printable(unused[0])}")
    return items, notes


def with_fused(items: list[Item], folder: str) -> list[Item]:
    """The items with their fused pictures; the number of an item is its `index`."""
    with naming("fused"):
        paths = match_rows(folder, [item.name for item in items], range(len(items))).paths
    mistakes = Mistakes()
    for item, path in zip(items, paths, strict=True):
        if path is None:
            mistakes.add(item.entry.where, f"{printable(folder)} has no picture of {printable(item.name)}")
    mistakes.stop_if_any()
    return [item._replace(fused=path) for item, path in zip(items, paths, strict=True)]


class Finder:
    """Finds the files that belong to an entry in the folders of visible images, infrared images and masks."""

    def __init__(self, folders: tuple[str, str, str]):
        self.visible, infrared, self._masks = Folder(folders[0]), Folder(folders[1]), Folder(folders[2], arrays=True)
        self._infrared_of = Partners(self.visible, infrared, (VISIBLE_WORDS, INFRARED_WORDS))
        self._mask_of = Partners(self.visible, self._masks, (VISIBLE_WORDS, MASK_WORDS))
        self._infrared = infrared

    def files_of(self, entry: Entry) -> Item:
        """Raises:
            ValueError: a file is missing or not the only one that fits.
        """
        name = self.visible.find(entry.image)
        mask = None
        if entry.shape is None:
            mask = self._masks.files[self._mask_of.find(name)]
        elif entry.shape == "mask":
            mask = self._masks.files[self._masks.find(entry.value)]
        infrared = self._infrared.files[self._infrared_of.find(name)]
        return Item(entry, name, self.visible.files[name], infrared, mask)


def digests_of(items: list[Item]) -> Iterator[tuple[str, list[bytes]]]:
    """Name and digests of each image, for `split_by_image`."""
    images = {item.name: (item.visible, item.infrared) for item in items}
    for name in progress_bar(sorted(images), desc="comparing images", unit="image"):
        try:
            yield name, [hashlib.sha256(read_file(path)).digest() for path in images[name]]
        except ValueError as error:
            raise InputError(str(error)) from error


def write(items: list[Item], parts: list[int], outs: list[str]) -> list[str]:
    """Write item i as a row of `outs[parts[i]]`; return sentences. Parts without items are not written."""
    mistakes, maker = Mistakes(), RowMaker()
    schema = SCHEMA if items[0].fused is None else SCHEMA_WITH_FUSED
    rows, images = Counter(parts), [set() for _ in outs]
    with contextlib.ExitStack() as stack:
        temporary = {part: stack.enter_context(replacing(outs[part])) for part in sorted(rows)}
        # Entered later, so left earlier: all files are complete before the first is put in its place.
        writers = {part: stack.enter_context(pq.ParquetWriter(path, schema)) for part, path in temporary.items()}
        waiting = {part: [] for part in rows}
        bar = progress_bar(items, desc="writing", unit="row")
        for index, (item, part) in enumerate(zip(bar, parts, strict=True)):
            try:
                row = maker.make(item, index)
            except ValueError as error:
                mistakes.add(item.entry.where, str(error))
            if mistakes.count:
                continue  # nothing will be written; look for further mistakes
            images[part].add(item.name)
            waiting[part].append(row)
            if len(waiting[part]) == ROWS_PER_GROUP:
                writers[part].write_table(pa.Table.from_pylist(waiting[part], schema))
                waiting[part] = []
        mistakes.stop_if_any()
        for part, left in waiting.items():
            if left:
                writers[part].write_table(pa.Table.from_pylist(left, schema))
    written = [f"wrote {outs[part]}: {counted(rows[part], 'row')}, {counted(len(images[part]), 'image')}"
               for part in sorted(rows)]
    return written + maker.notes()


class RowMaker:
    """Reads and checks the files of an item; keeps the last pair, since neighbouring rows of a table often share it."""

    def __init__(self):
        self._pair: tuple[str, str] | None = None
        self._cells: dict[str, bytes] = {}
        self._size = (0, 0)
        self._odd: dict[str, tuple[int, str]] = {}  # what is odd: how often, and where first

    def make(self, item: Item, index: int) -> dict:
        """The row of the schema for `item`, the images in their original bytes.

        Raises:
            ValueError: a file that cannot be used, or a mask that does not fit; says why.
        """
        pair = (item.visible, item.infrared)
        if self._pair != pair:
            self._pair = None
            visible, infrared = read_file(item.visible), read_file(item.infrared)
            pictures = decoded(item.visible, visible), decoded(item.infrared, infrared)
            self._size = pictures[0].shape[:2]
            for path, content in zip(pair, (visible, infrared), strict=True):
                if orientation(content) != 1:
                    self._note("an EXIF note says to turn the image, which readers of these files do not do", path)
            if pictures[1].shape[:2] != self._size:
                self._note("the infrared image has another size than the visible one", item.visible)
            for oddity in oddities_of_pair(*pictures):
                self._note(oddity, item.infrared)
            self._cells = {"image_name": item.name, "visible_image": visible, "infrared_image": infrared}
            self._pair = pair
        mask = io.BytesIO()
        np.save(mask, np.ascontiguousarray(self._mask(item)), allow_pickle=False)
        fused = {} if item.fused is None else {FUSED: self._read_fused(item)}
        return self._cells | fused | {"index": index, "question": item.entry.expression,
                                      "segmentation": mask.getvalue()}

    def _read_fused(self, item: Item) -> bytes:
        content = read_file(item.fused)
        if decoded(item.fused, content).shape[:2] != self._size:
            self._note("the fused image has another size than the visible one", item.fused)
        return content

    def _mask(self, item: Item) -> np.ndarray:
        height, width = self._size
        if item.mask is None:
            draw = mask_from_polygon if item.entry.shape == "polygon" else mask_from_rle
            mask = draw(item.entry.value, height, width)
        else:
            content = read_file(item.mask)
            try:
                mask, note = read_mask(content)
            except ValueError as error:
                raise ValueError(f"{printable(item.mask)} {error}") from error
            if note:
                self._note(f"the mask {note}", item.mask)
            if mask.shape != self._size:
                raise ValueError(f"{printable(item.mask)} has {mask.shape[1]} x {mask.shape[0]} pixels, but "
                                 f"{printable(item.visible)} has {width} x {height} as it is stored")
        if not mask.any():
            self._note("the mask is empty", item.entry.where)
        elif mask.all():
            self._note("the mask covers the whole image", item.entry.where)
        return mask

    def _note(self, what: str, where: str) -> None:
        count, first = self._odd.get(what, (0, where))
        self._odd[what] = count + 1, first

    def notes(self) -> list[str]:
        return [f"note: {what}: {printable(where)}" + f", and {count - 1} more" * (count > 1)
                for what, (count, where) in self._odd.items()]


def read_file(path: str) -> bytes:
    try:
        return read_bytes(path)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error


def decoded(path: str, content: bytes) -> np.ndarray:
    try:
        return decode_image(content)
    except ValueError as error:
        raise ValueError(f"{printable(path)} cannot be decoded as an image: {error}") from error
