"""Results on disk: what an evaluation leaves for each sample, and room for it beside what an earlier run left."""
import logging
import os
import re
from collections import Counter

import numpy as np
import pandas as pd
import torch
from PIL import Image

from .draw import overlay, resize, to_image
from .metrics import sample_iou

log = logging.getLogger(__name__)

FOLDERS = ("fusion", "Binary", "Overlay", "GT")
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


class ResultWriter:
    """Writes the pictures of an evaluation, each at its sample's original size.

    `fusion/{image_name}.jpg` the fused image, with `_{index}` behind the name when several rows share it;
    `Binary/{index}.png` the predicted mask, 0 and 255; `Overlay/{index}.jpg` the prediction and `GT/{index}.jpg` the
    truth in translucent red on the fused image. JPEG quality 95.

    Args:
        out_dir: an existing folder.
        names, indices: of each row of the data set; the indices differ from each other.
    """

    def __init__(self, out_dir: str, names: list[str], indices: list[int]):
        self.out_dir = out_dir
        self.indices = indices
        self.fused_names = unique_names([file_stem(name) for name in names], indices)
        for folder in FOLDERS:
            os.makedirs(os.path.join(out_dir, folder), exist_ok=True)

    def add(self, batch: dict, output) -> None:
        """Write a batch of `data.collate`, loaded with its originals, and the model's output for it."""
        masks = output.logits.argmax(1) == 1
        for i, row in enumerate(batch["row"].tolist()):
            size = batch["size"][i]
            fused = resize(to_image(output.fused[i]), size)
            predicted = resize(masks[i].cpu().numpy(), size)
            truth = resize(batch["mask"][i].astype(bool), size)
            index = self.indices[row]
            self._write(fused, "fusion", f"{self.fused_names[row]}.jpg")
            self._write(predicted.astype(np.uint8) * 255, "Binary", f"{index}.png")
            self._write(overlay(fused, predicted), "Overlay", f"{index}.jpg")
            self._write(overlay(fused, truth), "GT", f"{index}.jpg")

    def _write(self, image: np.ndarray, folder: str, name: str) -> None:
        Image.fromarray(image).save(os.path.join(self.out_dir, folder, name), quality=95)


def write_samples(path: str, dataset, counts: torch.Tensor) -> None:
    """Write `index,image_name,question,iou,intersection,union`, one line a row.

    Args:
        dataset: with `indices`, `names` and `questions`, the sentences as the model was given them.
        counts: (N, 5) int64 of `utils.metrics.pixel_counts`; `iou` is a fraction, the other two are pixels at img_size.
    """
    pd.DataFrame({
        "index": dataset.indices, "image_name": dataset.names, "question": dataset.questions,
        "iou": sample_iou(counts).numpy(), "intersection": counts[:, 0].numpy(), "union": counts[:, 1].numpy(),
    }).to_csv(path, index=False, float_format="%.6f")
