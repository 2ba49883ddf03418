"""What helps where objects are hard to find; settings are named as the training flags are."""
import math

import numpy as np

SMALL = 0.01  # share of the picture; below it an object is small
SAMPLED = 64  # rows whose masks are looked at
ENOUGH = 16 * 16  # pixels of an object: 4 × 4 of Swin's first patches


def object_pixels(dataset) -> np.ndarray:
    """The number of pixels of the objects in the first rows of a `data.MMRISDataset` with masks, at its `img_size`."""
    samples = (dataset[row] for row in range(min(len(dataset), SAMPLED)))
    return np.array([int(sample["target"].sum()) for sample in samples if isinstance(sample, dict)])


def small_objects(pixels: np.ndarray, img_size: int, seg_loss: str) -> str | None:
    """What helps where most objects cover less than 1 % of the picture, in one sentence; None where they do not.

    Args:
        pixels: as `object_pixels` counts them.
        img_size: side of the images, pixels.
        seg_loss: the segmentation loss of the run.
    """
    shares = pixels[pixels > 0] / img_size ** 2
    if not len(shares) or np.median(shares) >= SMALL:
        return None
    share = float(np.median(shares))
    advice = ["set seg_loss to bce_area or dice, which cross-entropy's preference for the background does not affect"
              ] if seg_loss == "ce" else []
    if share * img_size ** 2 < ENOUGH:
        larger = math.ceil(math.sqrt(ENOUGH / share) / 32) * 32
        advice.append(f"set img_size to {larger}, where it has {round(share * larger ** 2)} pixels")
    words = "; " + ", or ".join(advice) if advice else ""
    return (f"most objects are small: the median object of the first {len(pixels)} validation samples covers "
            f"{100 * share:.2g} % of the picture, {round(share * img_size ** 2)} pixels at img_size {img_size}{words}")


def nothing_found(counts, seg_loss: str) -> str | None:
    """What helps where a model found no object on the validation set, in one sentence; None where it found some.

    Args:
        counts: (N, 5) int64 from `engine.evaluate`.
        seg_loss: the segmentation loss of the run.
    """
    intersection, _, predicted, truth, _ = counts.sum(0).tolist()
    if intersection or not truth:
        return None
    what = "misses every object" if predicted else "predicts no object at all"
    loss = "seg_loss bce_area or dice, " if seg_loss == "ce" else ""
    return f"the model {what} on the validation set (overall IoU 0); what helps: {loss}more epochs, a larger img_size"
