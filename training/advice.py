"""What helps where validation finds nothing. Settings are named as the training flags are."""
from torch import Tensor


def on_finding_nothing(counts: Tensor, seg_loss: str) -> str | None:
    """What helps where a model found no object on the validation set, in one sentence; None where it found some.

    Args:
        counts: (N, 5) int64 from `engine.evaluate`.
        seg_loss: the segmentation loss, as in `models.LossWeights`.
    """
    intersection, _, predicted, truth, _ = counts.sum(0).tolist()
    if intersection or not truth:
        return None
    what = "misses every object" if predicted else "predicts no object at all"
    loss = "seg_loss bce_area or dice, " if seg_loss == "ce" else ""
    return f"the model {what} on the validation set (overall IoU 0); what helps: {loss}more epochs, a larger img_size"
