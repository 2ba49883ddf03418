"""How far the text steers the fusion: the same model with the true sentence, another sample's, and an empty one."""
from typing import Any

import numpy as np
import torch

from utils import distributed
from utils.color import destandardise, luma
from utils.contrast import contrast, ring
from utils.text import counted

from . import bootstrap
from .metrics import defined, pixel_counts, sample_iou, summarise
from .ratios import share

SENTENCES = ("true", "swapped", "empty")
COLUMNS = ("iou_swapped", "iou_empty", "contrast", "contrast_swapped", "contrast_empty", "change_inside",
           "change_outside")


class TextAblation:
    """Collects, for each sample, the model's results with other sentences.

    Attributes:
        counts: (N, 2, 5) int64 pixel counts by row, for the swapped and the empty sentence.
        change: (N, 2, 2) float64, likewise: mean absolute difference to the fused image of the true sentence, inside
            and outside the referred object, in grey levels of 255; NaN where there is no inside or outside.
        contrast: (N, 3) float64, for each of SENTENCES: `object_contrast` of the fused image.
        All are 0 in rows that were not added.

    Args:
        swapped: the other sample's sentence for each row.
        predict: called as `predict(batch, sentences)`, returns the model's output for the batch with these sentences.
    """

    def __init__(self, swapped: list[str], predict):
        self.swapped = swapped
        self.predict = predict
        self.counts = torch.zeros(len(swapped), 2, 5, dtype=torch.long)
        self.change = torch.zeros(len(swapped), 2, 2, dtype=torch.float64)
        self.contrast = torch.zeros(len(swapped), len(SENTENCES), dtype=torch.float64)

    def add(self, batch: dict, output) -> None:
        """Take a batch of `data.collate` and the model's output for it with the true sentences."""
        rows = batch["row"]
        target = batch["target"].to(output.logits.device)
        inside = batch["target"] == 1
        around = ring(inside)
        self.contrast[rows, 0] = object_contrast(output.fused, inside, around)
        sentences = [self.swapped[row] for row in rows.tolist()], [""] * len(rows)
        for which, others in enumerate(sentences):
            other = self.predict(batch, others)
            self.counts[rows, which] = pixel_counts(other.logits, target).cpu()
            self.change[rows, which] = change(output.fused, other.fused, batch["target"])
            self.contrast[rows, 1 + which] = object_contrast(other.fused, inside, around)

    def gather(self) -> None:
        """Join what all processes have collected."""
        self.counts, self.change, self.contrast = map(distributed.total, (self.counts, self.change, self.contrast))

    def columns(self) -> dict[str, torch.Tensor]:
        """What `per_sample.csv` holds of it: COLUMNS, (N,) float64 each; `change` is that by the swapped sentence."""
        ious = [sample_iou(counts) for counts in self.counts.unbind(1)]
        return dict(zip(COLUMNS, (*ious, *self.contrast.unbind(1), *self.change[:, 0].unbind(1)), strict=True))

    def summary(self, counts: torch.Tensor, rows: torch.Tensor) -> dict[str, dict[str, float | None]]:
        """What `metrics.json` holds.

        Args:
            counts: (N, 5) int64 by row, with the true sentences.
            rows: (M,) those that were evaluated.
        Returns:
            For each of SENTENCES `mIoU` and `oIoU` in percent, and `change_inside` and `change_outside`, the means
            over the samples, in grey levels of 255; None where no sample has an inside or outside.
        """
        of_each = [counts[rows], *self.counts[rows].unbind(1)]
        changes = [[0.0, 0.0], *self.change[rows].nanmean(0).tolist()]
        results = {}
        for name, sentence_counts, (inside, outside) in zip(SENTENCES, of_each, changes, strict=True):
            metrics = summarise(sentence_counts)
            results[name] = {"mIoU": metrics["mIoU"], "oIoU": metrics["oIoU"],
                             "change_inside": defined(inside), "change_outside": defined(outside)}
        return results

    def contrast_summary(self, rows: torch.Tensor, images: list[str], seed: int) -> dict[str, Any]:
        """How much the referred object stands out in the fused image, with each sentence.

        Args:
            rows: (M,) those that were evaluated.
            images: (M,) equal for rows of the same image.
            seed: of the bootstrap.
        Returns:
            For each of SENTENCES the mean contrast in grey levels of 255; `own_larger`, the percentage of samples whose
            contrast is larger with their own sentence than with the swapped one; `intervals_95`, [lower, upper] of
            these four; and `num_samples`, the number of rows with an object and a ring. None where there are none, and
            for `own_larger` where the sentence has no part in any fused image.
        """
        measured = self.contrast[rows].numpy()
        usable = np.isfinite(measured).all(1)
        measured = measured[usable]
        names = [*SENTENCES, "own_larger"]
        if not len(measured):
            return dict.fromkeys(names) | {"intervals_95": {}, "num_samples": 0}
        values = [*measured.T, 100.0 * (measured[:, 0] > measured[:, 1])]
        values = dict(zip(names, values, strict=True))
        if (measured[:, 0] == measured[:, 1]).all():
            del values["own_larger"]
        ratios = {name: share(column) for name, column in values.items()}
        ends = bootstrap.intervals(ratios, np.asarray(images)[usable], seed)
        return dict.fromkeys(names) | {name: float(column.mean()) for name, column in values.items()} | {
            "intervals_95": {name: list(interval) for name, interval in ends.items()}, "num_samples": len(measured)}


def object_contrast(fused: torch.Tensor, inside: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """The contrast of the object in the fused image: |mean luma inside − mean luma of a ring around it|.

    Args:
        fused: (B, 3, H, W) standardised.
        inside, around: (B, H, W) bool on the CPU, True on the object, and on its `ring`.
    Returns:
        (B,) float64 on the CPU, in grey levels of 255; NaN where object or ring has no pixel.
    """
    found = contrast(255 * luma(destandardise(fused))[:, 0].cpu().double(), inside, around).abs()
    return found.masked_fill(~(inside.any(2).any(1) & around.any(2).any(1)), torch.nan)


def change(fused: torch.Tensor, other: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two fused images inside and outside the object.

    Args:
        fused, other: (B, 3, H, W) standardised.
        target: (B, H, W) on the CPU, 1 on the object.
    Returns:
        (B, 2) float64 on the CPU, in grey levels of 255; NaN where there is no such pixel.
    """
    difference = 255 * (destandardise(fused) - destandardise(other)).abs().mean(1).cpu().double()
    parts = [(difference * part).sum((1, 2)) / part.sum((1, 2)) for part in (target == 1, target != 1)]
    return torch.stack(parts, dim=1)


def ablation_table(summary: dict[str, dict[str, float | None]], contrasts: dict[str, Any]) -> str:
    """The summaries of a `TextAblation` as aligned lines for the terminal."""
    lines = [f"{'sentence':<9}{'mIoU':>8}{'oIoU':>8}{'change inside':>15}{'outside':>9}{'contrast':>10}"]
    for name, values in summary.items():
        cells = [_cell(value) for value in (*values.values(), contrasts[name])]
        lines.append("{:<9}{:>8}{:>8}{:>15}{:>9}{:>10}  {}".format(name, *cells, _interval(contrasts, name)).rstrip())
    share = f"{_cell(contrasts['own_larger'])} % of {counted(contrasts['num_samples'], 'sample')}"
    if contrasts["own_larger"] is None:
        share = "undefined, since the sentence changes no fused image"
    lines.append(f"contrast larger with the own sentence than with the swapped one: {share} "
                 f"{_interval(contrasts, 'own_larger')}".rstrip())
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(contrasts: dict[str, Any], name: str) -> str:
    ends = contrasts["intervals_95"].get(name)
    return "" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
