"""How far a training run has come, and the loss terms on their way from the device to the log."""
import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from utils import distributed
from utils.errors import InputError
from utils.numeric import is_number
from utils.progress import say
from utils.text import printable_value

LEAST_IOU = 1.0  # percent; below it the overall IoU does not tell which of two models is better
PLAIN = (bool, int, float, str, type(None))


@dataclass
class Progress:
    """How far a run has come: plain values, saved with the weights, so that it can be resumed at any step."""

    epoch: int = 0
    step: int = 0           # optimizer steps done in this epoch
    samples: int = 0        # and the samples they used, over all processes
    sums: dict[str, float] = field(default_factory=dict)   # of the loss terms, over the steps that were finite
    skipped: int = 0        # steps of this epoch that were not finite
    bad_in_a_row: int = 0   # such steps at the end of what has been done, over epochs
    left_out: list[str] = field(default_factory=list)      # messages about rows of this epoch that could not be used
    seconds: float = 0.0    # of training, in this epoch
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at the start of this epoch
    best: float = -math.inf       # overall IoU of the best checkpoint, or minus its `val_total` without segmenter
    best_loss: float = math.inf   # its `val_total`
    best_epoch: int | None = None
    history: list[dict] = field(default_factory=list)      # what log.jsonl holds

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Progress":
        """From the fields in a file.

        Raises:
            ValueError: a field is unknown, of another type or out of its range.
        """
        kinds = {entry.name: entry.type for entry in fields(cls)}
        for name, value in values.items():
            if name not in kinds or not _is_of_kind(value, kinds[name]):
                raise ValueError(f"{name!r} cannot be {printable_value(value, 40)}")
        return cls(**values)

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
        finite = max(self.step - self.skipped, 1)
        self.sums = {name: value * step / finite for name, value in self.sums.items()}
        self.step, self.skipped = step, 0
        return [change]

    def means(self) -> dict[str, float]:
        """The mean of every loss term over the finite steps of this epoch."""
        return {name: value / max(self.step - self.skipped, 1) for name, value in self.sums.items()}

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether the model with these validation metrics is better than the best one so far.

        The larger overall IoU is better, or where both are below LEAST_IOU the lower validation loss; without
        segmenter the loss alone decides.
        """
        if self.best == -math.inf:
            return True
        if self.decided_by_loss(metrics):
            return metrics["val_total"] < self.best_loss or math.isnan(self.best_loss)
        return _score(metrics) > self.best or math.isnan(self.best)

    def decided_by_loss(self, metrics: dict[str, float]) -> bool:
        """Whether the overall IoU of these metrics and the best so far are both too low to compare."""
        return "oIoU" in metrics and -math.inf < self.best and max(metrics["oIoU"], self.best) < LEAST_IOU

    def keep_as_best(self, epoch: int, metrics: dict[str, float]) -> None:
        """Note that the model after `epoch` has been stored as the best one."""
        self.best, self.best_loss, self.best_epoch = _score(metrics), metrics["val_total"], epoch

    def forget_best(self) -> None:
        """Start to look for the best checkpoint anew."""
        self.best, self.best_loss, self.best_epoch = -math.inf, math.inf, None

    def entry(self, metrics: dict[str, float], validation_left_out: list[str]) -> dict:
        """What log.jsonl says about this epoch; None where a value is not finite, `total` if no step's loss was.

        Args:
            metrics: of the validation.
            validation_left_out: messages about validation rows that could not be used.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        return {"epoch": self.epoch, "total": None, **self.means(), **self.rates, **finite,
                "skipped_steps": self.skipped, "left_out": sorted(self.left_out),
                "validation_left_out": sorted(validation_left_out), "seconds": self.seconds,
                "samples_per_second": self.samples / self.seconds if self.seconds else 0.0}


def _score(metrics: dict[str, float]) -> float:
    """The larger, the better: overall IoU, or minus the validation loss without segmenter."""
    return metrics["oIoU"] if "oIoU" in metrics else -metrics["val_total"]


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Whether a value from a file can be a field of `Progress` with the type `kind`."""
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    if kind is float:
        return is_number(value)
    if kind == int | None:
        return value is None or _is_of_kind(value, int)
    if kind == dict[str, float]:
        return isinstance(value, dict) and all(
            isinstance(name, str) and is_number(number) for name, number in value.items())
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, list) and all(_is_entry(entry) for entry in value)


def _is_entry(value: Any) -> bool:
    """Whether a value from a file can be an epoch's entry in the log."""
    return isinstance(value, dict) and isinstance(value.get("epoch"), int) and all(
        isinstance(name, str) and (isinstance(content, PLAIN) or _is_of_kind(content, list[str]))
        for name, content in value.items())


class PendingTerms:
    """Loss terms and gradient norms of the latest steps, kept on the device until they are read.

    Args:
        progress: brought up to date by `read`.
        scaler: from `utils.device.grad_scaler`.
        dtype: what the networks compute in; None: float32.
        max_bad_steps: so many steps in a row that are not finite end the run.
    Attributes:
        left_out: messages about rows that could not be used since the latest `read`; the caller appends to it.
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
            return  # not an error: the gradient scaler is looking for the largest scale that float16 can hold
        progress.bad_in_a_row += 1
        rows = torch.cat(distributed.gather(rows)).tolist()
        what = (f"epoch {progress.epoch}, step {step}: not finite: {', '.join(not_finite)}; "
                f"rows {', '.join(map(str, rows))}")
        if progress.bad_in_a_row >= self.max_bad_steps:
            raise InputError(f"{what}; this was number {progress.bad_in_a_row} in a row, and training stops; look at "
                             "these rows, lower the learning rates, or limit the norm of the gradients")
        _say(f"WARNING: {what}; the step was skipped")


def _say(line: str) -> None:
    """Print beside a progress bar, in the main process."""
    if distributed.rank() == 0:
        say(line)
