"""The MM-RIS data set: an infrared and a visible image, a sentence, and the mask of the object it refers to."""
import contextlib
import logging
import math

import numpy as np
import torch

from utils.errors import InputError
from utils.text import printable

from .batches import BadRow, Samples
from .columns import FUSED, IMAGES, MASK, NULL, read_columns
from .decode import as_pictures, decode_luma, decode_lumas, decode_pixels, read_mask
from .parquet_rows import ParquetRows, ReadLimits, RowError, find_parquet
from .pictures import read_bytes
from .resize import Resizer
from .row_cache import small_row_groups

TOKENIZED_AT_ONCE = 4096  # sentences; a tokenizer's output takes kilobytes for each
KEPT_IMAGE = 2**23  # bytes of a decoded image up to which its memory is used again
MASK_NOTE, NO_SHARED_MEMORY = 0, 1  # what all processes together report once

logger = logging.getLogger(__name__)


class MMRISDataset(torch.utils.data.Dataset):
    """MM-RIS triplets in parquet: texts are read when it is opened, images and masks when their row is.

    `dataset[row]` is a dict, S being `img_size`:
        vis, ir: (3, S, S) float32, standardised with the ImageNet statistics.
        target (with `masks`): (S, S) int64, 1 on the object, 0 elsewhere.
        input_ids, attention_mask: (20,) int64.
        row: int, counted over all files.
        mask (with `masks` and `originals`): (h, w) uint8 array of 0 and 1, at the segmentation's own size.
        size (with `originals`): (width, height) of the visible image as stored.
        lumas (with `lumas`): 8-bit luma of both images at that size, see `decode_lumas`.
        given (with `fused` or `fused_files`): (3, S, S) float32, the fused image, standardised as the other two.
        fused_luma (likewise, with `lumas`): (h, w) uint8, its luma at that size.
        pictures (with `pictures`): both images at that size, (h, w, 3) uint8 RGB.
    The images and the mask may differ in size: each is resized on its own. With `lumas`, a row whose fused image has
    another size than its visible image cannot be used.

    Attributes:
        questions, names: the sentence and the image name of each row, as sequences of str.
        indices: the `index` column, which names output files; the row numbers if it is absent or does not tell the rows
            apart.
        input_ids, attention_mask: (rows, 20) int32 and uint8, the tokens of `questions`.
        cut: number of sentences with more than 20 tokens, of which only the first 20 are used.
        fused_files: None, or a list with the path of each row's fused image, whatever the column `fused_image` holds;
            a row for which it is None cannot be used. To be set before rows are read.

    Args:
        path: a parquet file, or a folder of them whose rows follow one another in the order of the file names; or the
            URL of either, see `utils.locations`.
        tokenizer: a `bert.Tokenizer`.
        img_size: S, a positive int, pixels.
        originals: also give `mask` and `size`.
        lumas: also give `lumas`, on which the fusion metrics work.
        fused: also give `given`, from the column `fused_image`, which otherwise need not exist.
        pictures: also give `pictures`, for fusion at the visible image's size.
        masks: False leaves the column `segmentation` alone, which then need not exist.
        bad_rows: what becomes of a row that cannot be used (null, an image or mask that cannot be decoded, no words in
            the sentence): "stop" raises an InputError, "skip" gives a `BadRow`, which `batches.collate` leaves out.
        exact: resize images exactly as Pillow does, for evaluation. False is faster for images of which one side is
            `img_size` already, and then within 1/255 of Pillow's pixels.
        cache_dir: folder for copies of URLs and of files with large row groups, from which rows are read fast in any
            order (see `row_cache`); they are written now. An empty string means the folder of each file, and no copies
            of URLs; None: no copies.
        limits: which row groups are large, and how much of them is in memory at a time.
    Raises:
        InputError: data that cannot be used; the message names file, row (within the file) and column. What concerns
            images and masks is found when their row is read.
    """

    def __init__(self, path: str, tokenizer, img_size: int = 480, originals: bool = False, masks: bool = True,
                 lumas: bool = False, bad_rows: str = "stop", exact: bool = False, cache_dir: str | None = None,
                 limits: ReadLimits | None = None, fused: bool = False, pictures: bool = False):
        if img_size < 1:
            raise ValueError(f"img_size must be a positive number of pixels, not {img_size}")
        if bad_rows not in ("stop", "skip"):
            raise ValueError(f"bad_rows must be stop or skip, not {bad_rows!r}")
        self.img_size, self.bad_rows = img_size, bad_rows
        self.originals, self.masks, self.lumas, self.fused = originals, masks, lumas, fused
        self.pictures = pictures
        self.fused_files: list[str | None] | None = None
        files = find_parquet(path)
        columns = [*IMAGES, *[FUSED] * fused, *[MASK] * masks]
        self.names, self.questions, self.indices, self._wordless = read_columns(path, files, columns)
        if self._wordless and bad_rows == "stop":
            raise InputError(self._wordless[min(self._wordless)])
        limits = limits or ReadLimits()
        sources = None if cache_dir is None else [small_row_groups(file, columns, cache_dir, limits) for file in files]
        self._rows = ParquetRows(files, columns, limits, sources)
        if len(self._rows) != len(self.questions):
            raise InputError(f"{path}: its row groups have {len(self._rows)} rows, its columns {len(self.questions)}; "
                             "the file is damaged, download or write it again")
        self._resizer = Resizer(img_size, exact)
        self._memory: dict[str, np.ndarray] = {}
        self._reported = _shared_flags()
        self.input_ids, self.attention_mask = _tokenize(tokenizer, self.questions)
        self.cut = count_cut(tokenizer, self.input_ids, self.attention_mask)
        if self.cut:
            logger.warning("%s: %d of %d sentences are longer than %d word pieces and are cut", path, self.cut,
                           len(self), self.input_ids.shape[1])

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, row: int) -> dict | BadRow:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> "Samples":
        """Several rows at once, as a DataLoader reads them: decoded into the memory of the batch."""
        count, side = len(rows), self.img_size
        tensors = {"vis": self._allocate((count, 3, side, side), torch.float32),
                   "ir": self._allocate((count, 3, side, side), torch.float32)}
        if self.fused or self.fused_files is not None:
            tensors["given"] = self._allocate((count, 3, side, side), torch.float32)
        if self.masks:
            tensors["target"] = self._allocate((count, side, side), torch.int64)
        samples, good = Samples(), 0
        for row in rows:
            try:
                samples.append(self._fill({name: tensor[good] for name, tensor in tensors.items()}, int(row)))
                good += 1
            except RowError as error:
                if self.bad_rows == "stop":
                    raise
                samples.append(BadRow(int(row), str(error)))
        samples.tensors = {name: tensor[:good] for name, tensor in tensors.items()}
        return samples

    def _fill(self, sample: dict, row: int) -> dict:
        """Decode a row into the tensors of `sample`, and add the rest of it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if row in self._wordless:
            raise RowError(self._wordless[row])
        cells = self._rows.read(row)
        vis, ir = (self._decode(cells, column, row) for column in IMAGES)
        size = vis.shape[1::-1]
        self._resizer.pair(vis, ir, sample["vis"], sample["ir"])
        if self.masks:
            mask = self._decode(cells, MASK, row)
            self._resizer.mask(mask, sample["target"])
        sample |= {"input_ids": self.input_ids[row].long(), "attention_mask": self.attention_mask[row].long(),
                   "row": row}
        if self.originals:
            sample |= {"mask": mask, "size": size} if self.masks else {"size": size}
        if self.lumas:
            sample["lumas"] = decode_lumas(*(cells[column] for column in IMAGES))
        if "given" in sample:
            self._add_fused(sample, cells, row)
        if self.pictures:
            sample["pictures"] = as_pictures(vis, ir)
        return sample

    def _add_fused(self, sample: dict, cells: dict, row: int) -> None:
        if self.fused_files is not None:
            cells = {FUSED: self._read_fused_file(row)}
        pixels = self._decode(cells, FUSED, row)
        self._resizer.image(pixels, sample["given"])
        if self.lumas:
            (height, width), (of_height, of_width) = pixels.shape[:2], sample["lumas"][0].shape
            if (height, width) != (of_height, of_width):
                raise RowError(f"{self._name_cell(row, FUSED)} is of {width}×{height} px, but the visible image of "
                               f"{of_width}×{of_height} px; the fusion metrics compare pixel by pixel, so make them "
                               "alike or leave these metrics out")
            sample["fused_luma"] = decode_luma(cells[FUSED])

    def _read_fused_file(self, row: int) -> bytes:
        path = self.fused_files[row] if self.fused_files else None
        if path is None:
            file, number = self._rows.locate(row)
            raise RowError(f"{file}: row {number}: there is no fused picture of it")
        try:
            return read_bytes(path)
        except ValueError as error:
            raise RowError(f"{printable(path)}: {error}") from error

    def _decode(self, cells: dict, column: str, row: int) -> np.ndarray:
        if cells[column] is None:
            raise RowError(f"{self._name_cell(row, column)} {NULL}")
        try:
            if column == MASK:
                return self._decode_mask(cells[column], row)
            pixels = decode_pixels(cells[column], self._memory.get(column))
        except ValueError as error:
            what = "" if column == MASK else "cannot be decoded as an image: "
            raise RowError(f"{self._name_cell(row, column)} {what}{error}") from error
        if pixels.nbytes <= KEPT_IMAGE:
            self._memory[column] = pixels
        return pixels

    def _decode_mask(self, content: memoryview, row: int) -> np.ndarray:
        mask = read_mask(content)
        if mask.note and not self._reported[MASK_NOTE]:
            self._reported[MASK_NOTE] = True
            logger.warning("%s %s; this is not reported for further rows", self._name_cell(row, MASK), mask.note)
        return mask.pixels

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory to fill. In a worker process it is shared with the main process, which saves two copies."""
        if torch.utils.data.get_worker_info() is None:
            return torch.empty(shape, dtype=dtype)
        try:
            storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as PyTorch's own collate
        except RuntimeError:
            if not self._reported[NO_SHARED_MEMORY]:
                self._reported[NO_SHARED_MEMORY] = True
                logger.warning("there is too little shared memory (/dev/shm), so that worker processes send batches "
                               "through pipes, which is slower; `docker run --shm-size 8g` gives a container more, and "
                               "without worker processes none is needed")
            return torch.empty(shape, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(storage).view(shape)

    def _name_cell(self, row: int, column: str) -> str:
        if column == FUSED and self.fused_files is not None:
            return printable(self.fused_files[row] or "")
        file, number = self._rows.locate(row)
        return f"{file}: row {number}: {column}"

    def windows(self) -> list | None:
        """See `ParquetRows.windows`; for `epoch_order`."""
        return self._rows.windows()

    @property
    def remote(self) -> bool:
        """Whether rows are read from a URL, and not from a file or a copy on this machine."""
        return self._rows.remote

    @property
    def limits(self) -> ReadLimits:
        """See `ReadLimits`; for `epoch_order`."""
        return self._rows.limits

    def shuffle_text(self, seed: int) -> None:
        """Swap the sentences between the samples: none keeps its own, nor, where avoidable, one of the same words.

        Raises:
            InputError: there are fewer than two usable rows.
        """
        usable = [row for row in range(len(self)) if row not in self._wordless]
        count = len(usable)
        if count < 2:
            raise InputError("sentences can only be swapped between samples when there are at least two rows")
        # A cyclic shift of a random permutation in which rows of equal text are neighbours. Shifted by the size of
        # the largest such run, no row meets its own text again, unless more than half of all rows share one.
        rows_of: dict[str, list[int]] = {}
        generator = np.random.default_rng(seed)
        for number in generator.permutation(count).tolist():
            rows_of.setdefault(self.questions[usable[number]], []).append(usable[number])
        to = [row for run in rows_of.values() for row in run]
        shift = min(max(map(len, rows_of.values())), count - 1)
        order = np.arange(len(self))
        order[to] = to[shift:] + to[:shift]
        self.questions = self.questions.take(order)
        self.input_ids = self.input_ids[order]
        self.attention_mask = self.attention_mask[order]


def _shared_flags() -> torch.Tensor:
    """(2,) bool, False; worker processes share it where the machine has shared memory."""
    flags = torch.zeros(2, dtype=torch.bool)
    with contextlib.suppress(RuntimeError):
        flags.share_memory_()
    return flags


def _tokenize(tokenizer, sentences) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of all sentences in the smallest types that hold them."""
    parts = [tokenizer(sentences[start:start + TOKENIZED_AT_ONCE])
             for start in range(0, len(sentences), TOKENIZED_AT_ONCE)]
    return torch.cat([ids.int() for ids, _ in parts]), torch.cat([mask.byte() for _, mask in parts])


def count_cut(tokenizer, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> int:
    """How many of the token sequences are full and do not end in [SEP], the last token of a sentence that fits."""
    ids, mask = tokenizer([""])
    last = ids[0, mask[0].sum() - 1]
    return int(((attention_mask[:, -1] == 1) & (input_ids[:, -1] != last)).sum())
