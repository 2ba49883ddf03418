"""What `predict.py` leaves for a pair of images and a sentence: pictures, and where the object is."""
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco

from utils.draw import outlined, overlay, panel, panel_cell, resize
from utils.files import replacing, unique_names
from utils.flags import PICTURE_KINDS
from utils.text import counted

from .results import encode_jpeg, encode_png

SMALLEST_PART = 0.01  # of the mask's pixels; smaller connected parts are specks, which get no box of their own
MOST_PARTS = 10  # that are described


class Part(NamedTuple):
    """A connected part of a mask: its bounding box, inclusive, in pixels, and its number of pixels."""

    left: int
    top: int
    right: int
    bottom: int
    pixels: int


def names_of_sentences(sentences: list[str]) -> list[str]:
    """For each sentence about a pair the part of a file name that tells it from the others: `the_red_car`."""
    words = [re.sub(r"\W+", "_", sentence)[:60].strip("_") or "text" for sentence in sentences]
    return unique_names(words, list(range(1, len(words) + 1)))


def write_prediction(pair, text: str, prediction, stem: str, kinds=PICTURE_KINDS, suffix: str = "png"
                     ) -> dict[str, str]:
    """Write `{stem}-fused.png` and so on.

    Args:
        pair: a `predictor.Pair`.
        text: the sentence.
        prediction: the `predictor.Prediction` for both.
        stem: path without kind and suffix.
        kinds: which of PICTURE_KINDS to write. The panel shows the other pictures, at most `draw.WIDEST_PANEL` wide.
        suffix: `png`, or `jpg` for JPEG files of quality 95. A mask is PNG in any case: JPEG would blur its edges.
    Returns:
        By kind, the paths of the pictures.
    Raises:
        InputError: one cannot be written.
    """
    draw = {"fused": lambda: prediction.fused, "mask": lambda: prediction.mask.astype(np.uint8) * 255,
            "overlay": lambda: overlay(prediction.fused, prediction.mask),
            "panel": lambda: prediction_panel(pair, text, prediction)}

    def write(kind: str) -> str:
        png = kind == "mask" or suffix == "png"
        path = f"{stem}-{kind}.{'png' if png else suffix}"
        content = (encode_png if png else encode_jpeg)(draw[kind]())
        with replacing(path, durable=False) as temporary, open(temporary, "wb") as file:
            file.write(content)
        return path

    with ThreadPoolExecutor(len(kinds)) as pool:  # encoders release the interpreter's lock
        return dict(zip(kinds, pool.map(write, kinds), strict=True))


def prediction_panel(pair, text: str, prediction) -> np.ndarray:
    """Both images, the fused one and the prediction on a page, (H, W, 3) uint8; arguments as in `write_prediction`."""
    height, width = prediction.mask.shape
    cell = panel_cell((width, height), 4)
    visible, infrared, fused, mask = (image if cell == (width, height) else resize(image, cell) for image in (
        pair.visible, pair.infrared, prediction.fused, prediction.mask))
    found = "prediction" if prediction.mask.any() else "prediction: nothing found"
    return panel(text, {"visible": visible, "infrared": infrared, "fused": fused, found: outlined(fused, mask)})


def record(files, text: str, prediction, pictures: dict[str, str]) -> dict[str, Any]:
    """A prediction as an entry of `predictions.json`.

    Args:
        files: the `data.pictures.PairOfFiles` of the pair.
        text, prediction: as in `write_prediction`.
        pictures: by kind, the paths of the pictures that were written.
    Returns:
        What `json` can write. `share` is a fraction of the image, `box` x, y, width and height in pixels,
        `mean_probability` the mean over the mask's pixels; both are None if nothing was found. `segmentation` is the
        mask as a run-length encoding in COCO's compressed form.
    """
    whole, _, _ = parts(prediction.mask)
    encoded = coco.encode(np.asfortranarray(prediction.mask, dtype=np.uint8))
    return {
        "name": files.name, "visible": files.visible, "infrared": files.infrared, "text": text,
        "found": whole is not None, "share": float(prediction.mask.mean()),
        "box": whole and [whole.left, whole.top, whole.right - whole.left + 1, whole.bottom - whole.top + 1],
        "mean_probability": whole and float(prediction.probability[prediction.mask].mean(dtype=np.float64)),
        "segmentation": {"size": list(prediction.mask.shape), "counts": encoded["counts"].decode("ascii")},
        "files": {kind: os.path.basename(path) for kind, path in pictures.items()}}


def parts(mask: np.ndarray) -> tuple[Part | None, list[Part], int]:
    """Where the object is.

    Pixels that touch, also at a corner, are connected.

    Args:
        mask: (h, w) bool.
    Returns:
        The whole, None if the mask is empty; its connected parts, largest first, without those of fewer than
        SMALLEST_PART of its pixels; and the number of parts left out.
    """
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = [Part(left, top, left + width - 1, top + height - 1, pixels)
             for left, top, width, height, pixels in boxes[1:].tolist()]  # the first is the background
    if not found:
        return None, [], 0
    pixels = sum(part.pixels for part in found)
    whole = Part(min(part.left for part in found), min(part.top for part in found),
                 max(part.right for part in found), max(part.bottom for part in found), pixels)
    large = sorted((part for part in found if part.pixels >= SMALLEST_PART * pixels), key=lambda part: -part.pixels)
    return whole, large, len(found) - len(large)


def describe(mask: np.ndarray) -> str:
    """Share and bounding box of a (h, w) bool mask in words, and if it has several parts, a line for each of them."""
    whole, large, specks = parts(mask)
    if whole is None:
        return "nothing found"
    lines = [f"{100 * mask.mean():.2f} % of the image, box {_box(whole)}"]
    if len(large) + specks > 1:
        lines += [f"  part {number}: {100 * part.pixels / mask.size:.2f} %, box {_box(part)}"
                  for number, part in enumerate(large[:MOST_PARTS], start=1)]
        if len(large) > MOST_PARTS:
            lines.append(f"  and {counted(len(large) - MOST_PARTS, 'smaller part')}")
        if specks:
            lines.append(f"  without {counted(specks, 'speck')}, each below {100 * SMALLEST_PART:g} % of the "
                         "predicted pixels")
    return "\n".join(lines)


def _box(part: Part) -> str:
    return (f"x {part.left} to {part.right}, y {part.top} to {part.bottom} "
            f"({part.right - part.left + 1}×{part.bottom - part.top + 1} px)")
