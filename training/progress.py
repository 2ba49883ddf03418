"""How far a training run has come, and the loss terms on their way from the device to the log."""
import math
from dataclasses import dataclass, field

import torch

from utils import distributed
from utils.errors import InputError
from utils.progress import say


@dataclass
class Progress:
    """How far a run has come: plain values, saved with the weights, so that it can be resumed at any step."""

    epoch: int = 0
    step: int = 0           # optimizer steps done in this epoch
    samples: int = 0        # and the samples they used, over all processes
    sums: dict[str, float] = field(default_factory=dict)   # of the loss terms, over the steps that were finite
    skipped: int = 0        # steps of this epoch that were not finite
    bad_in_a_row: int = 0
    left_out: list[str] = field(default_factory=list)      # messages about rows of this epoch that could not be used
    seconds: float = 0.0    # of training, in this epoch
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at the start of this epoch
    best: float = -math.inf
    history: list[dict] = field(default_factory=list)      # what log.jsonl holds

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.step, self.samples, self.sums, self.skipped, self.seconds = self.epoch + 1, 0, 0, {}, 0, 0.0
        self.left_out, self.rates = [], {}

    def refit(self, step_samples: int) -> list[str]:
        """Count this epoch's steps as if each had had `step_samples` samples; return what that changes, in words."""
        step = round(self.samples / step_samples)
        if self.step in (0, step):
            return []
        change = f"a step has {step_samples} samples, it had {self.samples // self.step}"
        self.sums = {name: value * step / (self.step - self.skipped) for name, value in self.sums.items()}
        self.step, self.skipped = step, 0
        return [change]

    def means(self) -> dict[str, float]:
        """The mean of every loss term over the finite steps of this epoch."""
        return {name: value / max(self.step - self.skipped, 1) for name, value in self.sums.items()}

    def entry(self, metrics: dict[str, float], validation_left_out: list[str]) -> dict:
        """What log.jsonl says about this epoch.

        Args:
            metrics: of the validation.
            validation_left_out: messages about validation rows that could not be used.
        """
        return {"epoch": self.epoch, **self.means(), **self.rates, **metrics, "skipped_steps": self.skipped,
                "left_out": sorted(self.left_out), "validation_left_out": sorted(validation_left_out),
                "seconds": self.seconds, "samples_per_second": self.samples / self.seconds}


class PendingTerms:
    """Loss terms and gradient norms of the latest steps, kept on the device until they are read.

    Args:
        progress: brought up to date by `read`.
        scaler: from `utils.device.grad_scaler`.
        dtype: what the networks compute in; None: float32.
        max_bad_steps: so many steps in a row that are not finite end the run.
    Attributes:
        left_out: messages about rows that could not be used since the latest `read`; the caller adds to it.
    """

    def __init__(self, progress: Progress, scaler, dtype: torch.dtype | None, max_bad_steps: int):
        self.progress, self.scaler, self.dtype, self.max_bad_steps = progress, scaler, dtype, max_bad_steps
        self.left_out: list[str] = []
        self._steps: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._names: list[str] = []

    def add(self, rows: torch.Tensor, terms: dict[str, torch.Tensor], norms: dict[str, torch.Tensor]) -> None:
        """Keep a step's loss terms and the gradient norms of its networks; `rows` (N,) are the rows of its batches."""
        self._names = [*terms, *(f"gradient of {name}" for name in norms)]
        values = torch.stack([value.float() for value in (*terms.values(), *norms.values())])
        self._steps.append((self.progress.step, rows, values))

    def read(self) -> dict[str, float]:
        """Wait for the device, bring `progress` up to date and return the latest step's values.

        Raises:
            InputError: too many steps in a row were not finite.
        """
        values = distributed.mean(torch.stack([values for _, _, values in self._steps])).tolist()
        for (step, rows, _), numbers in zip(self._steps, values, strict=True):
            named = dict(zip(self._names, numbers, strict=True))
            not_finite = [name for name, value in named.items() if not math.isfinite(value)]
            if not_finite:
                self._skip(step, rows, not_finite)
            else:
                self.progress.bad_in_a_row = 0
                for name, value in named.items():
                    if not name.startswith("gradient"):
                        self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self._steps.clear()
        self._report_left_out()
        return named

    def _report_left_out(self) -> None:
        if distributed.largest(len(self.left_out)):
            messages = distributed.joined(self.left_out)
            self.progress.left_out += messages
            self.left_out = []
            for message in messages:
                _say(f"WARNING: left out: {message}")

    def _skip(self, step: int, rows: torch.Tensor, not_finite: list[str]) -> None:
        progress = self.progress
        progress.skipped += 1
        if self.dtype == torch.float16 and "total" not in not_finite and self.scaler.get_scale() > 1:
            return  # the gradient scaler looks for the largest scale that float16 holds; this is no fault
        progress.bad_in_a_row += 1
        rows = torch.cat(distributed.gather(rows)).tolist()
        what = (f"epoch {progress.epoch}, step {step}: not finite: {', '.join(not_finite)}; "
                f"rows {', '.join(map(str, rows))}")
        if progress.bad_in_a_row >= self.max_bad_steps:
            raise InputError(f"{what}; this was number {progress.bad_in_a_row} in a row, and training stops; look at "
                             "these rows, lower --lr_seg and --lr_pf, or set --grad_clip")
        _say(f"WARNING: {what}; the step was skipped")


def _say(line: str) -> None:
    """Print beside a progress bar, in the main process."""
    if distributed.rank() == 0:
        say(line)
