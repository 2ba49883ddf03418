"""Results on disk: what an evaluation leaves for each sample, and room for it beside what an earlier run left."""
import io
import json
import logging
import os
import re
from collections import Counter

import numpy as np
import pandas as pd
import torch
from PIL import Image

from .draw import overlay, resize, to_image
from .metrics import sample_iou, usable_rows

log = logging.getLogger(__name__)

FOLDERS = {"none": (), "masks": ("Binary",), "all": ("fusion", "Binary", "Overlay", "GT")}
LONGEST_NAME = 200  # bytes; file systems end at 255


def set_aside(folder: str, pattern: str) -> None:
    """Move what an earlier run left in `folder` to a subfolder of it, so that neither is lost and none is mixed.

    Args:
        pattern: regular expression; files and folders whose whole name matches are moved.
    """
    left = [name for name in os.listdir(folder) if re.fullmatch(pattern, name)]
    if not left:
        return
    number = 1
    while os.path.exists(aside := os.path.join(folder, f"earlier_run_{number}")):
        number += 1
    os.mkdir(aside)
    for name in left:
        os.rename(os.path.join(folder, name), os.path.join(aside, name))
    log.info("%s held results of an earlier run, which are now in %s", folder, aside)


def file_stem(name: str) -> str:
    """`name` as a plain file name: whatever the data say, no path. Separators and control characters become _."""
    stem = re.sub(r"[/\\\x00-\x1f\x7f]", "_", name).lstrip(".")  # no hidden files
    stem = stem.encode("utf-8", "replace")[:LONGEST_NAME].decode("utf-8", "ignore")
    return stem or "_"


def unique_names(stems: list[str], indices: list[int]) -> list[str]:
    """The stems, with `_{index}` behind those that occur more than once; no two alike, even in letter case."""
    occurrences = Counter(stem.casefold() for stem in stems)  # some file systems take A.jpg and a.jpg for the same
    used = {stem for stem, count in occurrences.items() if count == 1}
    names = []
    for stem, index in zip(stems, indices, strict=True):
        name = stem
        if occurrences[stem.casefold()] > 1:
            while (name := f"{name}_{index}").casefold() in used:
                pass
            used.add(name.casefold())
        names.append(name)
    return names


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
