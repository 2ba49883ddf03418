"""The MM-RIS data set: an infrared and a visible image, a sentence, and the mask of the object it refers to."""
import io
import logging

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from utils.color import standardise
from utils.errors import InputError

from .parquet_rows import ParquetRows, find_parquet, first_line, open_parquet

TEXT = ("image_name", "question")
IMAGES = ("visible_image", "infrared_image")
BYTES = (*IMAGES, "segmentation")

logger = logging.getLogger(__name__)


class MMRISDataset(torch.utils.data.Dataset):
    """MM-RIS triplets in parquet; images are read as they are asked for, the rest at opening.

    `dataset[row]` is a dict, S being `img_size`:
        vis, ir: (3, S, S) float32, standardised with the ImageNet statistics.
        target (with `masks`): (S, S) int64, 1 on the object, 0 elsewhere.
        input_ids, attention_mask: (20,) int64.
        row: int, counted over all files.
        mask (with `originals`): (h, w) uint8 array of 0 and 1, at the segmentation's own size.
        size (with `originals`): (width, height) of the visible image as stored.

    Attributes:
        questions, names: the sentence and the image name of each row.
        indices: the `index` column, which names output files; the row numbers if it is absent or does not serve.

    Args:
        path: a parquet file, or a folder of them whose rows follow one another in the order of the file names.
        tokenizer: a `bert.Tokenizer`.
        img_size: S, a positive int, pixels.
        originals: also give `mask` and `size`.
        masks: False leaves out the masks; the column `segmentation` is then not needed.
    Raises:
        InputError: data that cannot be used; the message names file, row (within the file) and column. What concerns
            images and masks is found when their row is asked for.
    """

    def __init__(self, path: str, tokenizer, img_size: int = 480, originals: bool = False,
                 masks: bool = True):
        if img_size < 1:
            raise ValueError(f"img_size must be a positive number of pixels, not {img_size}")
        self.img_size = img_size
        self.originals = originals
        self.masks = masks
        columns = BYTES if masks else IMAGES
        files = find_parquet(path)
        self.names, self.questions, indices = [], [], []
        for file in files:
            small = _read_small_columns(file, columns)
            self.names += small["image_name"]
            self.questions += small["question"]
            indices.append(small.get("index"))
        if not self.questions:
            raise InputError(f"{path}: there are no rows in it")
        self.indices = _usable_indices(path, indices, len(self.questions))
        self._rows = ParquetRows(files, list(columns))
        self.input_ids, self.attention_mask = tokenizer(self.questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, row: int) -> dict:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        cells = self._rows.read(row)
        for column, value in cells.items():
            if value is None:
                raise InputError(f"{self._place(row, column)} is empty (null)")
        vis = self._decode(cells, "visible_image", row)
        ir = self._decode(cells, "infrared_image", row)
        sample = {
            "vis": self._to_tensor(vis),
            "ir": self._to_tensor(ir),
            "input_ids": self.input_ids[row],
            "attention_mask": self.attention_mask[row],
            "row": int(row),
        }
        if self.originals:
            sample["size"] = vis.size
        if self.masks:
            mask = self._decode_mask(cells, row)
            square = (self.img_size, self.img_size)
            target = np.asarray(Image.fromarray(mask).resize(square, Image.Resampling.NEAREST))
            sample["target"] = torch.from_numpy(target.astype(np.int64))
            if self.originals:
                sample["mask"] = mask
        return sample

    def shuffle_text(self, seed: int) -> None:
        """Swap the sentences between the samples: none keeps its own, nor, where avoidable, one of the same words.

        Raises:
            InputError: with a single row there is nothing to swap with.
        """
        count = len(self)
        if count < 2:
            raise InputError("sentences can only be swapped between samples when there are at least two rows")
        # A cyclic shift of a random permutation in which rows of equal text are neighbours. Shifted by the size of
        # the largest such run, no row meets its own text again, unless more than half of all rows share one.
        places: dict[str, list[int]] = {}
        generator = np.random.default_rng(seed)
        for row in generator.permutation(count).tolist():
            places.setdefault(self.questions[row], []).append(row)
        to = [row for run in places.values() for row in run]
        shift = min(max(map(len, places.values())), count - 1)
        source = dict(zip(to, to[shift:] + to[:shift], strict=True))
        order = [source[row] for row in range(count)]
        self.questions = [self.questions[row] for row in order]
        self.input_ids = self.input_ids[order]
        self.attention_mask = self.attention_mask[order]

    def _place(self, row: int, column: str) -> str:
        file, number = self._rows.locate(row)
        return f"{file}: row {number}: {column}"

    def _decode(self, cells: dict, column: str, row: int) -> Image.Image:
        try:
            return Image.open(io.BytesIO(cells[column])).convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
            reason = "" if "BytesIO" in str(error) else f" ({first_line(error)})"
            raise InputError(f"{self._place(row, column)} cannot be decoded as an image{reason}") from error

    def _decode_mask(self, cells: dict, row: int) -> np.ndarray:
        """(h, w) uint8 of 0 and 1."""
        place = self._place(row, "segmentation")
        try:
            # Not np.load, which also accepts archives; and never a pickle, which could run code.
            mask = np.lib.format.read_array(io.BytesIO(cells["segmentation"]), allow_pickle=False)
        except Exception as error:
            raise InputError(f"{place} is not a .npy array of numbers ({first_line(error)})") from error
        if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "buif":
            raise InputError(f"{place} must be a (height, width) array of numbers, not {mask.dtype} {mask.shape}")
        return (mask > 0).astype(np.uint8)

    def _to_tensor(self, image: Image.Image) -> torch.Tensor:
        image = image.resize((self.img_size, self.img_size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return standardise(pixels.to(torch.float32).div(255)).contiguous()


def collate(samples: list[dict]) -> dict:
    """Samples of `MMRISDataset` as one batch: tensors stacked, `row` (B,) int64, `mask` and `size` still lists."""
    batch = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, torch.Tensor):
            values = torch.stack(values)
        elif key == "row":
            values = torch.tensor(values)
        batch[key] = values
    return batch


def _read_small_columns(file: str, large: tuple[str, ...]) -> dict[str, list]:
    """`image_name`, `question` and, where there is one, `index`; also checks that the `large` ones are there."""
    parquet = open_parquet(file)
    schema = parquet.schema_arrow
    for columns, kinds, wanted in (
        (TEXT, (pa.types.is_string, pa.types.is_large_string), "text"),
        (large, (pa.types.is_binary, pa.types.is_large_binary), "bytes"),
    ):
        for column in columns:
            if schema.names.count(column) != 1:
                raise InputError(f"{file}: column {column} is missing; it has {', '.join(schema.names) or 'none'}")
            kind = schema.field(column).type
            if not any(is_kind(kind) for is_kind in kinds):
                raise InputError(f"{file}: column {column} must hold {wanted}, not {kind}")
    small = [*TEXT, "index"] if "index" in schema.names else list(TEXT)
    try:
        columns = parquet.read(columns=small, use_threads=False).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: columns {', '.join(small)} cannot be read ({first_line(error)}); "
                         "the file is damaged, download or write it again") from error
    for column in TEXT:
        if None in columns[column]:
            raise InputError(f"{file}: row {columns[column].index(None)}: {column} is empty (null)")
    return columns


def _usable_indices(path: str, indices: list[list | None], count: int) -> list[int]:
    """The `index` columns of all files as one list, or the row numbers where they do not tell rows apart."""
    if all(column is None for column in indices):
        return list(range(count))
    values = [value for column in indices if column is not None for value in column]
    if len(values) < count:
        problem = "is missing from some of the files"
    elif not all(isinstance(value, int) for value in values):
        problem = "holds empty cells or something else than whole numbers"
    elif len(set(values)) < count:
        problem = "gives the same number to several rows"
    else:
        return values
    logger.warning("%s: the index column %s; the row numbers are used instead", path, problem)
    return list(range(count))
