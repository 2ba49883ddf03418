"""Segmentation metrics of referring expressions, from four pixel counts per sample."""
import math

import numpy as np
import torch
from torch import Tensor

from .ratios import generalised_scores, iou_of, precisions

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def pixel_counts(logits: Tensor, target: Tensor) -> Tensor:
    """The pixel counts of each sample from which all metrics follow.

    Args:
        logits: (B, 2, H, W); the prediction is argmax over the classes.
        target: (B, H, W) int64, 1 on the referred object.
    Returns:
        (B, 5) int64: intersection, union, predicted pixels, true pixels, all pixels.
    """
    predicted = (logits.argmax(1) == 1).flatten(1)
    truth = (target == 1).flatten(1)
    pixels = torch.full((len(truth),), truth.shape[1], device=truth.device)
    intersection, union = (predicted & truth).sum(1), (predicted | truth).sum(1)
    return torch.stack([intersection, union, predicted.sum(1), truth.sum(1), pixels], dim=1)


def sample_iou(counts: Tensor) -> Tensor:
    """(N, 5) counts on the CPU to (N,) float64 IoU in [0, 1]; 0 where the union is empty."""
    return torch.from_numpy(iou_of(*counts[:, :2].T.numpy()))


def summarise(counts: Tensor, thresholds=THRESHOLDS) -> dict[str, float]:
    """All metrics of a data set, in percent.

    Args:
        counts: (N, 5) int64 on the CPU, N ≥ 1, a row of `pixel_counts` for each sample.
        thresholds: the t of precision@t, in [0, 1].
    Returns:
        `mIoU` mean over samples; `oIoU` Σ intersection / Σ union; `cIoU` the same for background and foreground,
        averaged; `Precision`, `Recall`, `F1` of foreground pixels over the whole set; `precision@t` share of samples
        with IoU ≥ t; `num_samples` (a count).
    """
    iou = sample_iou(counts)
    intersection, union, predicted, truth, pixels = counts.sum(0).double()

    def ratio(part, whole):
        return float(100 * part / whole) if whole > 0 else 0.0

    return {
        "mIoU": float(100 * iou.mean()),
        "oIoU": ratio(intersection, union),
        "cIoU": (ratio(intersection, union) + ratio(pixels - union, pixels - intersection)) / 2,
        "Precision": ratio(intersection, predicted),
        "Recall": ratio(intersection, truth),
        "F1": ratio(2 * intersection, predicted + truth),
        **{name: float(100 * hits.mean()) for name, hits in precisions(iou.numpy(), thresholds).items()},
        "num_samples": len(counts),
    }


def no_target_metrics(counts: Tensor, has_object: np.ndarray) -> dict[str, float]:
    """Metrics of generalised referring segmentation, in percent, for sets with sentences that refer to nothing.

    Args:
        counts: (N, 5) as for `summarise`.
        has_object: (N,) bool, False for at least one sample.
    Returns:
        `gIoU` mean of `ratios.generalised_scores`; `N-acc` share of the sentences that refer to nothing for which
        nothing is predicted; `num_no_target` the number of these sentences.
    """
    scores = generalised_scores(counts[:, 2].numpy(), sample_iou(counts).numpy(), has_object)
    return {"gIoU": float(100 * scores.mean()), "N-acc": float(100 * scores[~has_object].mean()),
            "num_no_target": int((~has_object).sum())}


def usable_rows(counts: Tensor) -> Tensor:
    """The rows that were evaluated, (M,) int64, from (N, 5) counts by row: the others have no pixels at all."""
    return counts[:, 4].nonzero().flatten()


def defined(value: float) -> float | None:
    """`value`, or None for NaN, which JSON cannot represent."""
    return None if math.isnan(value) else value


def metrics_table(metrics: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None) -> str:
    """The metrics as aligned lines for the terminal, with two decimals, each followed by its interval if it has one."""
    width = max(map(len, metrics))
    lines = []
    for name, value in metrics.items():
        line = f"{name:<{width}}  {value:>7.2f}" if isinstance(value, float) else f"{name:<{width}}  {value:>7}"
        if intervals and name in intervals:
            line += "  [{:.2f}, {:.2f}]".format(*intervals[name])
        lines.append(line)
    return "\n".join(lines)
