"""Train one epoch, evaluate one data set."""
import math
import time
from dataclasses import dataclass, field

import torch

from evaluation.metrics import THRESHOLDS, pixel_counts, summarise, usable_rows
from training.autosave import STOP
from utils import distributed
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress_bar, say

INPUTS = ("vis", "ir", "input_ids", "attention_mask")


@dataclass
class Progress:
    """How far a run has come: plain values, saved with the weights, so that it can go on from any step."""

    epoch: int = 0
    step: int = 0           # optimizer steps done in this epoch
    samples: int = 0        # and the samples they used, over all processes
    sums: dict[str, float] = field(default_factory=dict)  # of the loss terms, over the steps that were finite
    skipped: int = 0        # steps of this epoch that were not
    bad_in_a_row: int = 0
    left_out: list[str] = field(default_factory=list)     # what is said of rows that could not be used, this epoch
    seconds: float = 0.0    # of training, in this epoch
    best: float = -math.inf
    history: list[dict] = field(default_factory=list)     # what log.jsonl holds

    def next_epoch(self) -> None:
        self.epoch, self.step, self.samples, self.sums, self.skipped, self.seconds = self.epoch + 1, 0, 0, {}, 0, 0.0
        self.left_out = []

    def refit(self, step_samples: int) -> list[str]:
        """Count this epoch's steps as if each had had `step_samples` samples; what that changes, in words."""
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


class Readings:
    """Loss terms and gradient norms of the latest steps, left on the device until somebody wants to know them."""

    def __init__(self, progress: Progress, scaler, dtype, max_bad_steps: int):
        self.progress, self.scaler, self.dtype, self.max_bad_steps = progress, scaler, dtype, max_bad_steps
        self.steps: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.names: list[str] = []
        self.left_out: list[str] = []  # messages about rows, since the latest reading

    def add(self, rows: torch.Tensor, terms: dict[str, torch.Tensor], norms: dict[str, torch.Tensor]) -> None:
        """Take a step's terms and the gradient norms of its networks; `rows` says what was in its batch."""
        self.names = [*terms, *(f"gradient of {name}" for name in norms)]
        values = torch.stack([value.float() for value in (*terms.values(), *norms.values())])
        self.steps.append((self.progress.step, rows, values))

    def read(self) -> dict[str, float]:
        """Wait for the device, bring `progress` up to date and give the latest step's values.

        Raises:
            InputError: too many steps in a row were not finite.
        """
        values = distributed.mean(torch.stack([values for _, _, values in self.steps])).tolist()
        for (step, rows, _), numbers in zip(self.steps, values, strict=True):
            named = dict(zip(self.names, numbers, strict=True))
            bad = [name for name, value in named.items() if not math.isfinite(value)]
            if bad:
                self._skipped(step, rows, bad)
            else:
                self.progress.bad_in_a_row = 0
                for name, value in named.items():
                    if not name.startswith("gradient"):
                        self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.steps.clear()
        if distributed.largest(len(self.left_out)):
            messages = distributed.joined(self.left_out)
            self.progress.left_out += messages
            self.left_out = []
            for message in messages:
                _say(f"WARNING: left out: {message}")
        return named

    def _skipped(self, step: int, rows: torch.Tensor, bad: list[str]) -> None:
        progress = self.progress
        progress.skipped += 1
        if self.dtype == torch.float16 and "total" not in bad and self.scaler.get_scale() > 1:
            return  # the scaler trying how much float16 can hold, no fault
        progress.bad_in_a_row += 1
        rows = torch.cat(distributed.gather(rows)).tolist()
        place = f"epoch {progress.epoch}, step {step}: not finite: {', '.join(bad)}; rows {', '.join(map(str, rows))}"
        if progress.bad_in_a_row >= self.max_bad_steps:
            raise InputError(f"{place}; this was number {progress.bad_in_a_row} in a row, and training stops; look at "
                             "these rows, lower --lr_seg and --lr_pf, or set --grad_clip")
        _say(f"WARNING: {place}; the step was skipped")


def _say(line: str) -> None:
    """Print beside a progress bar."""
    if distributed.rank() == 0:
        say(line)


def train_one_epoch(model, criterion, loader, optimizer, scheduler, scaler, device, progress: Progress, autosave, *,
                    networks: dict, dtype=None, accum: int = 1, grad_clip: float = 0.0, print_freq: int = 10,
                    max_bad_steps: int = 10, ema=None, on_reading=None) -> None:
    """What is left of one pass over the data, one optimizer and scheduler step for every `accum` batches.

    A step whose loss or gradient is not finite changes neither weights nor running statistics.

    Args:
        model: from `build_model`, or that in DistributedDataParallel.
        criterion: from `build_criterion`.
        loader: gives the batches that are left of the epoch, as `data.collate` makes them.
        scaler: from `utils.device.grad_scaler`.
        progress: is brought up to date, but only when the terms are read.
        autosave: `due()` says after each step whether to save or stop, `save()` does it.
        networks: name → module, whose gradient norms are wanted.
        dtype: for the networks' forward pass, float16 or bfloat16; None: float32. Losses are float32 in any case.
        grad_clip: largest 2-norm of all gradients together; 0 leaves them as they are.
        print_freq: steps between two readings of the loss terms, each of which waits for the device.
        max_bad_steps: so many steps in a row that are not finite are the end.
        ema: a `timm.utils.ModelEmaV3` to keep up with the model.
        on_reading: called with the latest terms and norms by name, and the samples per second since the last call.
    Raises:
        InputError: the loss stays non-finite.
        Stopped: a signal asked for it; everything has been saved.
    """
    model.train()
    statistics = [buffer for name, buffer in model.named_buffers() if "running_" in name]
    parameters = [p for p in model.parameters() if p.requires_grad]
    last = progress.step + len(loader) // accum
    readings = Readings(progress, scaler, dtype, max_bad_steps)
    bar = progress_bar(total=last, initial=progress.step, desc=f"epoch {progress.epoch}", unit="step",
                       disable=distributed.rank() > 0)
    batches = iter(loader)
    clock, samples = time.perf_counter(), 0
    while progress.step < last:
        kept = [buffer.clone() for buffer in statistics]
        rows, terms, used = [], {}, 0
        for micro in range(accum):
            batch = next(batches)
            readings.left_out += batch.get("bad", [])
            used += len(batch["row"]) + len(batch.get("bad", []))
            teaches = len(batch["row"]) > 0
            if not teaches:  # other processes may be taking part in this step, so it is gone through all the same
                batch = _any_batch(loader)
            vis, ir, input_ids, attention_mask = (batch[name].to(device, non_blocking=True) for name in INPUTS)
            target = batch["target"].to(device, non_blocking=True) if "target" in batch else None
            with distributed.without_averaging(model, micro < accum - 1):
                with autocast(device, dtype):
                    output = model(vis, ir, input_ids, attention_mask)
                loss, parts = criterion(output, vis, ir, target)
                finite = loss.detach() * 0 + 1  # 1, or NaN, which then reaches the gradients of every process
                scaler.scale(loss * finite * teaches / accum).backward()
            rows.append(batch["row"])
            terms = {name: terms.get(name, 0) + value / accum for name, value in parts.items()}

        scaler.unscale_(optimizer)
        norms = {name: torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
                 for name, network in networks.items()}
        norm = torch.stack(list(norms.values())).norm()
        if grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, grad_clip, norm)
        scaler.step(optimizer)  # skips it by itself, on the device, when a gradient is not finite
        scaler.update(None if dtype == torch.float16 else 1.0)
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        for buffer, old in zip(statistics, kept, strict=True):
            buffer.copy_(torch.where(norm.isfinite(), buffer, old))
        if ema is not None:
            ema.update(distributed.unwrap(model))

        progress.step += 1
        used *= distributed.world_size()
        progress.samples, samples = progress.samples + used, samples + used
        readings.add(torch.cat(rows), terms, norms)
        bar.update()
        due = autosave.due()
        if due or progress.step % print_freq == 0 or progress.step == last:
            values = readings.read()
            seconds = time.perf_counter() - clock
            progress.seconds += seconds
            bar.set_postfix({name: f"{value:.3f}" for name, value in progress.means().items()
                             if name in ("total", "seg", "fusion")}, refresh=False)
            if on_reading is not None:
                on_reading(values, samples / seconds)
            if due:
                autosave.save()
            if due == STOP:
                bar.close()
                autosave.stop()
            clock, samples = time.perf_counter(), 0
    bar.close()


def _any_batch(loader) -> dict:
    """A batch of one usable row."""
    for row in range(len(loader.dataset)):
        batch = loader.collate_fn([loader.dataset[row]])
        if len(batch["row"]):
            return batch
    raise InputError("none of the rows can be used; the messages about them say why")


@torch.inference_mode()
def evaluate(model, loader, device, thresholds=THRESHOLDS, on_batch=None, bad: list[str] | None = None, dtype=None
             ) -> tuple[dict[str, float], torch.Tensor]:
    """Segmentation metrics over all samples, each with its sentence, whichever process had them.

    Args:
        model: not wrapped.
        loader: gives this process's share of the data set.
        thresholds: the t of precision@t.
        on_batch: called with each batch and the model's output, for pictures.
        bad: gets the messages about rows that the data set left out, those of all processes.
        dtype: as in `train_one_epoch`.
    Returns:
        The metrics in percent (see `evaluation.metrics.summarise`), over the rows that could be used; and (N, 5) int64
        pixel counts by row, N being the length of the data set, all 0 for rows that were left out.
    Raises:
        InputError: no row could be used.
    """
    model.eval()
    counts = torch.zeros(len(loader.dataset), 5, dtype=torch.int64)
    messages = []
    for batch, output in _outputs(model, loader, device, dtype, messages):
        counts[batch["row"]] = pixel_counts(output.logits, batch["target"].to(device)).cpu()
        if on_batch is not None:
            on_batch(batch, output)
    counts = distributed.total(counts)
    if bad is not None:
        bad += distributed.joined(messages)
    used = usable_rows(counts)
    if not len(used):
        raise InputError("none of the rows can be used; the messages about them say why")
    return summarise(counts[used], thresholds), counts


@torch.inference_mode()
def evaluate_fusion(model, criterion, loader, device, on_batch=None, bad: list[str] | None = None, dtype=None
                    ) -> dict[str, float]:
    """The means of the loss terms over all samples, named `val_` and the term; for a model without segmenter.

    Arguments and errors as for `evaluate`.
    """
    model.eval()
    sums, count, messages = {}, 0, []
    for batch, output in _outputs(model, loader, device, dtype, messages):
        vis, ir = batch["vis"].to(device), batch["ir"].to(device)
        for name, value in criterion(output, vis, ir, None)[1].items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(vis)
        count += len(vis)
        if on_batch is not None:
            on_batch(batch, output)
    if bad is not None:
        bad += distributed.joined(messages)
    shares = distributed.gather((sums, count))
    count = sum(share for _, share in shares)
    if not count:
        raise InputError("none of the rows can be used; the messages about them say why")
    return {f"val_{name}": sum(share.get(name, 0.0) for share, _ in shares) / count
            for name in max((share for share, _ in shares), key=len)}


def _outputs(model, loader, device, dtype, messages: list[str]):
    """Each batch with the model's output; what is said of rows that were left out goes to `messages`."""
    for batch in progress_bar(loader, desc="evaluate", unit="batch", disable=distributed.rank() > 0):
        messages += batch.get("bad", [])
        if len(batch["row"]):
            with autocast(device, dtype):
                output = model(*(batch[name].to(device, non_blocking=True) for name in INPUTS))
            yield batch, output
