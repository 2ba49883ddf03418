"""How far the text steers the fusion: the same model with the true sentence, another sample's, and an empty one."""
import torch

from utils import distributed
from utils.color import destandardise

from .metrics import defined, pixel_counts, summarise

SENTENCES = ("true", "swapped", "empty")


class TextAblation:
    """Collects, for each sample, the model's results with other sentences.

    Attributes:
        counts: (N, 2, 5) int64 pixel counts by row, for the swapped and the empty sentence.
        change: (N, 2, 2) float64, likewise: mean absolute difference to the fused image of the true sentence, inside
            and outside the referred object, in grey levels of 255; NaN where there is no inside or outside.
        Both are 0 in rows that were not added.

    Args:
        swapped: the other sample's sentence for each row.
        predict: called as `predict(batch, sentences)`, returns the model's output for the batch with these sentences.
    """

    def __init__(self, swapped: list[str], predict):
        self.swapped = swapped
        self.predict = predict
        self.counts = torch.zeros(len(swapped), 2, 5, dtype=torch.long)
        self.change = torch.zeros(len(swapped), 2, 2, dtype=torch.float64)

    def add(self, batch: dict, output) -> None:
        """Take a batch of `data.collate` and the model's output for it with the true sentences."""
        rows = batch["row"]
        target = batch["target"].to(output.logits.device)
        sentences = [self.swapped[row] for row in rows.tolist()], [""] * len(rows)
        for which, others in enumerate(sentences):
            other = self.predict(batch, others)
            self.counts[rows, which] = pixel_counts(other.logits, target).cpu()
            self.change[rows, which] = change(output.fused, other.fused, batch["target"])

    def gather(self) -> None:
        """Join what all processes have collected."""
        self.counts, self.change = distributed.total(self.counts), distributed.total(self.change)

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


def ablation_table(summary: dict[str, dict[str, float | None]]) -> str:
    """`TextAblation.summary` as aligned lines for the terminal."""
    lines = [f"{'sentence':<9}{'mIoU':>8}{'oIoU':>8}{'change inside':>15}{'outside':>9}"]
    for name, values in summary.items():
        cells = ["-" if value is None else f"{value:.2f}" for value in values.values()]
        lines.append("{:<9}{:>8}{:>8}{:>15}{:>9}".format(name, *cells))
    return "\n".join(lines)
