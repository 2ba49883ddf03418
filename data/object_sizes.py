"""How large the referred objects are, and what helps to find small ones. Settings are named as in training."""
import math

import numpy as np

SMALL = 0.01  # share of the picture; below it an object is small
SAMPLED = 64  # rows whose masks `first_shares` looks at
ENOUGH = 16 * 16  # pixels of an object in the network's input: 4 × 4 patches of Swin's first stage


def first_shares(dataset) -> np.ndarray:
    """The shares of the picture, 0 to 1, that the objects in the first rows of an `MMRISDataset` with masks cover."""
    samples = (dataset[row] for row in range(min(len(dataset), SAMPLED)))
    return np.array([float(sample["target"].float().mean()) for sample in samples if isinstance(sample, dict)])


def advise_on_small(shares: np.ndarray, img_size: int, seg_loss: str, rows: str) -> str | None:
    """What helps where most objects cover less than 1 % of the picture, in one sentence; None where they do not.

    Args:
        shares: of the picture that each object covers, 0 to 1; empty masks are left out.
        img_size: side of the square images that the networks see, pixels.
        seg_loss: the segmentation loss, as in `models.LossWeights`.
        rows: which rows the shares are of, in words.
    """
    shares = shares[shares > 0]
    share = float(np.median(shares)) if len(shares) else 1.0
    if share >= SMALL:
        return None
    advice = []
    if seg_loss == "ce":
        advice.append("set seg_loss to bce_area or dice, which weigh object and background alike")
    if share * img_size ** 2 < ENOUGH:
        larger = math.ceil(math.sqrt(ENOUGH / share) / 32) * 32
        advice.append(f"set img_size to {larger}, where it has {round(share * larger ** 2)}")
    return (f"most objects are small: the median object of {rows} covers {100 * share:.2g} % of the picture, "
            f"{round(share * img_size ** 2)} pixels at img_size {img_size}"
            f"{'; ' + ', or '.join(advice) if advice else ''}")
