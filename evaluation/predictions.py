"""What `predict.py` leaves for a pair of images and a sentence: four pictures, and what they show in words."""
import numpy as np
from PIL import Image

from utils.draw import outlined, overlay, panel
from utils.files import replacing

KINDS = ("fused", "mask", "overlay", "panel")


def write_prediction(pair, text: str, prediction, stem: str) -> list[str]:
    """Write `{stem}-fused.png` and so on, for each of KINDS.

    Args:
        pair: a `predictor.Pair`.
        text: the sentence.
        prediction: the `predictor.Prediction` for both.
        stem: path without kind and suffix.
    Returns:
        The paths of the pictures.
    Raises:
        InputError: one cannot be written.
    """
    fused, mask = prediction.fused, prediction.mask
    page = panel(text, {"visible": pair.visible, "infrared": pair.infrared, "fused": fused,
                        "prediction": outlined(fused, mask)})
    pictures = (fused, mask.astype(np.uint8) * 255, overlay(fused, mask), page)
    paths = [f"{stem}-{kind}.png" for kind in KINDS]
    for path, picture in zip(paths, pictures, strict=True):
        with replacing(path) as temporary:
            Image.fromarray(picture).save(temporary, "PNG")
    return paths


def describe(mask: np.ndarray) -> str:
    """Share and bounding box of a (h, w) bool mask, in words."""
    if not mask.any():
        return "nothing found"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (left, right), (top, bottom) = columns[[0, -1]], rows[[0, -1]]
    return (f"{100 * mask.mean():.2f} % of the image, box x {left} to {right}, y {top} to {bottom} "
            f"({right - left + 1}×{bottom - top + 1} px)")
