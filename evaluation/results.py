"""What an evaluation leaves on disk: pictures and a line of numbers for each sample."""
import io
import json
import os

import numpy as np
import pandas as pd
import torch
from PIL import Image

from utils.draw import overlay, resize, to_image
from utils.files import file_stem, unique_names

from .metrics import sample_iou, usable_rows

FOLDERS = {"none": (), "masks": ("Binary",), "all": ("fusion", "Binary", "Overlay", "GT")}


def encode_jpeg(image: np.ndarray) -> bytes:
    """(h, w, 3) or (h, w) uint8 as the bytes of a JPEG file of quality 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class ResultWriter:
    """Writes the pictures of an evaluation, each at its sample's original size.

    `fusion/{image_name}.jpg` the fused image, with `_{index}` behind the name when several rows share it;
    `Binary/{index}.png` the predicted mask, 0 and 255; `Overlay/{index}.jpg` the prediction and `GT/{index}.jpg` the
    truth in translucent red on the fused image. JPEG quality 95.

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
        for folder in self.folders:
            os.makedirs(os.path.join(out_dir, folder), exist_ok=True)

    def add(self, batch: dict, output) -> None:
        """Write a batch of `data.collate`, loaded with its originals, and the model's output for it."""
        if not self.folders:
            return
        masks = output.logits.argmax(1) == 1
        for i, row in enumerate(batch["row"].tolist()):
            size = batch["size"][i]
            index = self.indices[row]
            predicted = resize(masks[i].cpu().numpy(), size)
            Image.fromarray(predicted.astype(np.uint8) * 255).save(self._path("Binary", f"{index}.png"))
            if "fusion" in self.folders:
                fused = resize(to_image(output.fused[i]), size)
                truth = resize(batch["mask"][i].astype(bool), size)
                self._write(fused, "fusion", f"{self.fused_names[row]}.jpg")
                self._write(overlay(fused, predicted), "Overlay", f"{index}.jpg")
                self._write(overlay(fused, truth), "GT", f"{index}.jpg")

    def _write(self, image: np.ndarray, folder: str, name: str) -> None:
        with open(self._path(folder, name), "wb") as file:
            file.write(encode_jpeg(image))

    def _path(self, folder: str, name: str) -> str:
        return os.path.join(self.out_dir, folder, name)


def write_samples(path: str, dataset, counts: torch.Tensor, columns: dict[str, torch.Tensor] | None = None) -> None:
    """Write `index,image_name,question,iou,intersection,union`, one line for each row that was evaluated.

    Args:
        dataset: with `indices`, `names` and `questions`, the sentences as the model was given them.
        counts: (N, 5) int64 by row, of `engine.evaluate`; `iou` is a fraction, the other two are pixels at img_size.
        columns: further ones, (N,) each; NaN leaves a cell empty.
    """
    rows = usable_rows(counts)
    counts, listed = counts[rows], rows.tolist()
    pd.DataFrame({
        **{name: [values[row] for row in listed] for name, values in (
            ("index", dataset.indices), ("image_name", dataset.names), ("question", dataset.questions))},
        "iou": sample_iou(counts).numpy(), "intersection": counts[:, 0].numpy(), "union": counts[:, 1].numpy(),
        **{name: values[rows].numpy() for name, values in (columns or {}).items()},
    }).to_csv(path, index=False, float_format="%.6f")


def write_json(path: str, content: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
