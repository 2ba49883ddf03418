"""What an evaluation leaves on disk: pictures and a line of numbers for each sample, each file whole or not at all."""
import io
import json
import logging
import os
import tempfile

import cv2
import numpy as np
import torch
from PIL import Image

from utils import distributed
from utils.draw import fused_picture, overlay, resize
from utils.errors import InputError
from utils.files import file_stem, replacing, unique_names
from utils.spreadsheet import as_cell

from .metrics import sample_iou, usable_rows

logger = logging.getLogger(__name__)

FOLDERS = {"none": (), "masks": ("Binary",), "all": ("fusion", "Binary", "Overlay", "GT")}


def encode_jpeg(image: np.ndarray) -> bytes:
    """(h, w, 3) or (h, w) uint8 as the bytes of a JPEG file of quality 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """Likewise, the bytes of a PNG file."""
    # zlib's fastest level and one filter: a quarter of the time of Pillow's level 4 for files 1 to 14 % larger.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if image.ndim == 2:  # a mask, which is runs of equal bytes
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    else:
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # since OpenCV 4.12; before, every filter is tried on each line
        options += [cv2.IMWRITE_PNG_FILTER,
                    cv2.IMWRITE_PNG_FILTER_NONE if image.ndim == 2 else cv2.IMWRITE_PNG_FILTER_AVG]
    return cv2.imencode(".png", image, options)[1].tobytes()


def reserve(folder: str, size: int):
    """Take `size` bytes of the disk until the file that is returned is closed; it has no name, and dies with us.

    So there is room for the figures when the pictures have filled the disk.

    Raises:
        InputError: there is not so much room.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, the caller closes it
        file.write(bytes(size))
        file.flush()
    except OSError as error:
        raise InputError(f"{folder}: there is no room for the results ({error.strerror})") from error
    return file


class ResultWriter:
    """Writes the pictures of an evaluation, each at its sample's original size.

    `fusion/{image_name}.jpg` the fused image, with `_{index}` behind the name when several rows share it;
    `Binary/{index}.png` the predicted mask, 0 and 255; `Overlay/{index}.jpg` the prediction and `GT/{index}.jpg` the
    truth in translucent red on the fused image. JPEG quality 95.

    After a picture that cannot be written, the rest are left out: the metrics do not depend on them.

    Attributes:
        errors: the sentence about that picture, if there is one.

    Args:
        out_dir: an existing folder.
        names, indices: of each row of the data set; the indices differ from each other.
        save: a key of FOLDERS, which says what of this to write.
    """

    def __init__(self, out_dir: str, names: list[str], indices: list[int], save: str = "all"):
        self.out_dir = out_dir
        self.indices = indices
        self.fused_names = unique_names([file_stem(name) for name in names], indices)
        self.folders = FOLDERS[save]
        self.errors: list[str] = []
        for folder in self.folders:
            try:
                os.makedirs(os.path.join(out_dir, folder), exist_ok=True)
            except OSError as error:
                self.errors.append(f"{out_dir}: the folder {folder} cannot be made ({error.strerror})")

    def add(self, batch: dict, output) -> None:
        """Write a batch of `data.collate`, loaded with its originals, and the model's output for it."""
        if not self.folders or self.errors:
            return
        try:
            self._write_batch(batch, output)
        except InputError as error:
            self.errors.append(str(error))
            logger.error("error: %s; the evaluation goes on without pictures", error)

    def gather(self) -> None:
        """Join the errors of all processes."""
        self.errors = distributed.joined(self.errors)

    def _write_batch(self, batch: dict, output) -> None:
        masks = output.logits.argmax(1) == 1
        for i, row in enumerate(batch["row"].tolist()):
            size = batch["size"][i]
            index = self.indices[row]
            predicted = resize(masks[i].cpu().numpy(), size)
            self._write(encode_png(predicted.astype(np.uint8) * 255), "Binary", f"{index}.png")
            if "fusion" in self.folders:
                fused = fused_picture(batch, output, i, size)
                truth = resize(batch["mask"][i].astype(bool), size)
                self._write(encode_jpeg(fused), "fusion", f"{self.fused_names[row]}.jpg")
                self._write(encode_jpeg(overlay(fused, predicted)), "Overlay", f"{index}.jpg")
                self._write(encode_jpeg(overlay(fused, truth)), "GT", f"{index}.jpg")

    def _write(self, content: bytes, folder: str, name: str) -> None:
        with replacing(os.path.join(self.out_dir, folder, name), durable=False) as path, \
                open(path, "wb") as file:
            file.write(content)


def write_samples(path: str, dataset, counts: torch.Tensor, columns: dict[str, torch.Tensor] | None = None,
                  pictures: dict[int, str] | None = None) -> None:
    """Write `index,image_name,question,iou,intersection,union`, one line for each row that was evaluated.

    Names and sentences are written by `utils.spreadsheet.as_cell`.

    Args:
        dataset: with `indices`, `names` and `questions`, the sentences as the model was given them.
        counts: (N, 5) int64 by row, of `engine.evaluate`; `iou` is a fraction, the other two are pixels at img_size.
        columns: further ones, (N,) each; NaN leaves a cell empty.
        pictures: by row, what tells its picture from others, where `image_name` does not; the last column, `picture`.
    Raises:
        InputError: the file cannot be written.
    """
    import pandas as pd  # late: only test.py needs it

    rows = usable_rows(counts)
    counts, listed = counts[rows], rows.tolist()
    table = pd.DataFrame({
        "index": [dataset.indices[row] for row in listed],
        "image_name": [as_cell(dataset.names[row]) for row in listed],
        "question": [as_cell(dataset.questions[row]) for row in listed],
        "iou": sample_iou(counts).numpy(), "intersection": counts[:, 0].numpy(), "union": counts[:, 1].numpy(),
        **{name: values[rows].numpy() for name, values in (columns or {}).items()},
        **({"picture": [pictures[row] for row in listed]} if pictures else {})})
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", encoding="utf-8", errors="replace")


def write_json(path: str, content: dict) -> None:
    """Write `content`, which holds no NaN and no infinity.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
