"""The MM-RIS data set: an infrared and a visible image, a sentence, and the mask of the object it refers to."""
import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import InputError

from .columns import IMAGES, MASK, NULL, read_columns
from .decode import decode_lumas, decode_mask, decode_pixels
from .parquet_rows import ParquetRows, ReadLimits, RowError, find_parquet
from .resize import Squares

TOKENIZED_AT_ONCE = 4096  # sentences; what a tokenizer returns takes kilobytes of each
KEPT_IMAGE = 2**23  # bytes of a decoded image whose memory is used again


@dataclass(frozen=True)
class BadRow:
    """In place of a sample, with `bad_rows="skip"`: the row, over all files, and a sentence on what is wrong."""

    row: int
    message: str


class MMRISDataset(torch.utils.data.Dataset):
    """MM-RIS triplets in parquet; images are read as they are asked for, the rest at opening.

    `dataset[row]` is a dict, S being `img_size`:
        vis, ir: (3, S, S) float32, standardised with the ImageNet statistics.
        target (with `masks`): (S, S) int64, 1 on the object, 0 elsewhere.
        input_ids, attention_mask: (20,) int64.
        row: int, counted over all files.
        mask (with `masks` and `originals`): (h, w) uint8 array of 0 and 1, at the segmentation's own size.
        size (with `originals`): (width, height) of the visible image as stored.
        lumas (with `lumas`): 8-bit luma of both images at that size, see `decode_lumas`.
    Visible image, infrared image and mask may differ in size: each is resized on its own.

    Attributes:
        questions, names: the sentence and the image name of each row, as sequences of str.
        indices: the `index` column, which names output files; the row numbers if it is absent or does not serve.
        input_ids, attention_mask: (rows, 20) int32 and uint8, the tokens of `questions`.

    Args:
        path: a parquet file, or a folder of them whose rows follow one another in the order of the file names.
        tokenizer: a `bert.Tokenizer`.
        img_size: S, a positive int, pixels.
        originals: also give `mask` and `size`.
        lumas: also give `lumas`, on which the fusion metrics work.
        masks: False leaves the column `segmentation` alone, which then need not exist.
        bad_rows: what becomes of a row that cannot be used (null, an image or mask that cannot be decoded, no words in
            the sentence): "stop" raises an InputError, "skip" gives a `BadRow`, which `collate` leaves out.
    Raises:
        InputError: data that cannot be used; the message names file, row (within the file) and column. What concerns
            images and masks is found when their row is asked for.
    """

    def __init__(self, path: str, tokenizer, img_size: int = 480, originals: bool = False, masks: bool = True,
                 lumas: bool = False, bad_rows: str = "stop", limits: ReadLimits | None = None):
        if img_size < 1:
            raise ValueError(f"img_size must be a positive number of pixels, not {img_size}")
        if bad_rows not in ("stop", "skip"):
            raise ValueError(f"bad_rows must be stop or skip, not {bad_rows!r}")
        self.img_size, self.bad_rows = img_size, bad_rows
        self.originals, self.masks, self.lumas = originals, masks, lumas
        files = find_parquet(path)
        columns = [*IMAGES, MASK] if masks else list(IMAGES)
        self.names, self.questions, self.indices, self._wordless = read_columns(path, files, columns)
        if self._wordless and bad_rows == "stop":
            raise InputError(self._wordless[min(self._wordless)])
        self._rows = ParquetRows(files, columns, limits)
        if len(self._rows) != len(self.questions):
            raise InputError(f"{path}: its row groups have {len(self._rows)} rows, its columns {len(self.questions)}; "
                             "the file is damaged, download or write it again")
        self._squares = Squares(img_size)
        self._memory: dict[str, np.ndarray] = {}
        self.input_ids, self.attention_mask = _tokenize(tokenizer, self.questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, row: int) -> dict | BadRow:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> "Samples":
        """Several rows at once, as a DataLoader asks for them: decoded into what will be the batch's own memory."""
        count, side = len(rows), self.img_size
        tensors = {"vis": _empty((count, 3, side, side), torch.float32),
                   "ir": _empty((count, 3, side, side), torch.float32)}
        if self.masks:
            tensors["target"] = _empty((count, side, side), torch.int64)
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
        self._squares.pair(vis, ir, sample["vis"], sample["ir"])
        if self.masks:
            mask = self._decode(cells, MASK, row)
            self._squares.mask(mask, sample["target"])
        sample |= {"input_ids": self.input_ids[row].long(), "attention_mask": self.attention_mask[row].long(),
                   "row": row}
        if self.originals:
            sample |= {"mask": mask, "size": size} if self.masks else {"size": size}
        if self.lumas:
            sample["lumas"] = decode_lumas(*(cells[column] for column in IMAGES))
        return sample

    def _decode(self, cells: dict, column: str, row: int) -> np.ndarray:
        if cells[column] is None:
            raise RowError(f"{self._place(row, column)} {NULL}")
        try:
            if column == MASK:
                return decode_mask(cells[column])
            pixels = decode_pixels(cells[column], self._memory.get(column))
        except ValueError as error:
            what = "" if column == MASK else "cannot be decoded as an image: "
            raise RowError(f"{self._place(row, column)} {what}{error}") from error
        if pixels.nbytes <= KEPT_IMAGE:
            self._memory[column] = pixels
        return pixels

    def _place(self, row: int, column: str) -> str:
        file, number = self._rows.locate(row)
        return f"{file}: row {number}: {column}"

    def windows(self) -> list | None:
        """Which rows lie together in the files, for `epoch_order`; see `ParquetRows.windows`."""
        return self._rows.windows()

    @property
    def limits(self) -> ReadLimits:
        """How the files are read, for `epoch_order`."""
        return self._rows.limits

    def shuffle_text(self, seed: int) -> None:
        """Swap the sentences between the samples: none keeps its own, nor, where avoidable, one of the same words.

        Raises:
            InputError: with a single row there is nothing to swap with.
        """
        usable = [row for row in range(len(self)) if row not in self._wordless]
        count = len(usable)
        if count < 2:
            raise InputError("sentences can only be swapped between samples when there are at least two rows")
        # A cyclic shift of a random permutation in which rows of equal text are neighbours. Shifted by the size of
        # the largest such run, no row meets its own text again, unless more than half of all rows share one.
        places: dict[str, list[int]] = {}
        generator = np.random.default_rng(seed)
        for place in generator.permutation(count).tolist():
            places.setdefault(self.questions[usable[place]], []).append(usable[place])
        to = [row for run in places.values() for row in run]
        shift = min(max(map(len, places.values())), count - 1)
        order = np.arange(len(self))
        order[to] = to[shift:] + to[:shift]
        self.questions = self.questions.take(order)
        self.input_ids = self.input_ids[order]
        self.attention_mask = self.attention_mask[order]


class Samples(list):
    """Samples and `BadRow`s; `tensors` holds the images and targets of the samples, each of which has a row of them."""

    tensors: dict[str, torch.Tensor]


def collate(samples: list[dict | BadRow]) -> dict:
    """Samples of `MMRISDataset` as one batch, without those that could not be read.

    Returns:
        What a sample holds: tensors stacked, `row` (B,) int64, `mask`, `size` and `lumas` still lists; and `bad`, a
        list of sentences on the rows left out. If none is left, `row`, of length 0, and `bad` alone.
    """
    good = [sample for sample in samples if not isinstance(sample, BadRow)]
    bad = [sample.message for sample in samples if isinstance(sample, BadRow)]
    batch = {"row": torch.tensor([sample["row"] for sample in good], dtype=torch.int64), "bad": bad}
    ready = samples.tensors if isinstance(samples, Samples) else {}
    for key in good[0] if good else ():
        if key != "row":
            values = [sample[key] for sample in good]
            is_tensor = isinstance(values[0], torch.Tensor)
            batch[key] = ready[key] if key in ready else torch.stack(values) if is_tensor else values
    return batch


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory to fill; in a process that loads, memory that the main process shares, which saves it two copies."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as PyTorch's own collate does
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _tokenize(tokenizer, sentences) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of all sentences in the smallest types that hold them."""
    parts = [tokenizer(sentences[start:start + TOKENIZED_AT_ONCE])
             for start in range(0, len(sentences), TOKENIZED_AT_ONCE)]
    return torch.cat([ids.int() for ids, _ in parts]), torch.cat([mask.byte() for _, mask in parts])
