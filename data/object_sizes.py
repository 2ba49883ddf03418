"""How large the objects of a data set are for the networks, and what follows from it for training."""
import math
from collections.abc import Sequence

import numpy as np

from utils.text import counted

SMALL = 0.01  # of the image; an object below it is called small
FEW_PIXELS = 32**2  # of an object; one position of the last of the four Swin stages sees as many
SAMPLED = 64  # rows whose masks `first_shares` reads


def first_shares(dataset) -> np.ndarray:
    """The shares of the image, 0 to 1, that the objects in the first rows of an `MMRISDataset` with masks cover."""
    samples = (dataset[row] for row in range(min(len(dataset), SAMPLED)))
    return np.array([float(sample["target"].float().mean()) for sample in samples if isinstance(sample, dict)])


def small_objects(areas: Sequence[float] | np.ndarray, img_size: int, seg_loss: str = "ce") -> str:
    """What to do about a data set most of whose objects are small, in a sentence; empty if they are not.

    Args:
        areas: the objects' shares of their images, 0 to 1; those that are 0 are not counted.
        img_size: side of the networks' input in pixels.
        seg_loss: the segmentation loss, as in `models.LossWeights`; another is advised instead of `ce`.
    """
    areas = np.asarray(areas, np.float64)
    areas = areas[areas > 0]
    if not areas.size or np.mean(areas < SMALL) <= 0.5:
        return ""
    median = float(np.median(areas))
    pixels = median * img_size**2
    share = 100 * np.mean(areas < SMALL)
    sentence = (f"{share:.0f} % of the objects cover less than {100 * SMALL:g} % of their image; the median one has "
                f"{counted(round(pixels), 'pixel')} of the networks' {img_size} x {img_size}")
    advice = []
    if seg_loss == "ce":
        sentence += ". Networks trained with the loss ce often predict no object at all on such data"
        advice.append("train with seg_loss bce_area or dice")
    if pixels < FEW_PIXELS:
        larger = 32 * math.ceil((FEW_PIXELS / median) ** 0.5 / 32)
        advice.append(f"with a larger img_size ({larger} gives the median object {FEW_PIXELS} pixels)")
    return f"{sentence}: {', and '.join(advice)}" if advice else sentence
