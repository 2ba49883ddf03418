"""Train for one epoch; evaluate a data set."""
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from evaluation.metrics import THRESHOLDS, pixel_counts, summarise, usable_rows
from models import Output, inputs_of
from training.autosave import STOP, Autosave
from training.progress import PendingTerms, Progress
from training.running_statistics import RunningStatistics
from utils import distributed
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress_bar

Criterion = Callable[[Output, Tensor, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]  # as JointCriterion


class Loader(Protocol):
    """What is used here of a `DataLoader` of batches as `data.collate` makes them."""

    dataset: Any  # has a length
    collate_fn: Callable[[list], dict]

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[dict]:
        """The batches."""


def train_one_epoch(model: nn.Module, criterion: Criterion, loader: Loader, optimizer: torch.optim.Optimizer,
                    scheduler: LRScheduler, scaler: torch.amp.GradScaler, device: torch.device, progress: Progress,
                    autosave: Autosave, *, networks: dict[str, nn.Module], dtype: torch.dtype | None = None,
                    accum: int = 1, grad_clip: float = 0.0, print_freq: int = 10, max_bad_steps: int = 10,
                    ema: ModelEmaV3 | None = None, on_terms: Callable[[dict[str, float], float], None] | None = None
                    ) -> None:
    """Train for the rest of an epoch, with one optimizer and scheduler step for every `accum` batches.

    A step whose loss or gradient is not finite changes neither weights nor running statistics.

    Args:
        model: from `build_model`, or that in DistributedDataParallel.
        criterion: from `build_criterion`.
        loader: gives the remaining batches of the epoch, as `data.collate` makes them.
        scaler: from `utils.device.grad_scaler`.
        progress: brought up to date whenever the loss terms are read.
        autosave: its `due` is called after each step.
        networks: name → module, whose gradient norms are reported.
        dtype: for the networks' forward pass, float16 or bfloat16; None: float32. Losses are float32 in any case.
        grad_clip: largest 2-norm of all gradients together; 0 leaves them as they are.
        print_freq: steps between two readings of the loss terms, each of which waits for the device.
        max_bad_steps: so many steps in a row that are not finite end the run.
        ema: updated with the model.
        on_terms: called with the latest terms and norms by name, and the samples per second since the last call.
    Raises:
        InputError: the loss stays non-finite.
        Stopped: a signal asked the run to stop; everything has been saved.
    """
    model.train()
    statistics = RunningStatistics(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    last = progress.step + len(loader) // accum
    pending = PendingTerms(progress, scaler, dtype, max_bad_steps)
    bar = progress_bar(total=last, initial=progress.step, desc=f"epoch {progress.epoch}", unit="step",
                       disable=distributed.rank() > 0)
    batches = iter(loader)
    clock, samples = time.perf_counter(), 0
    while progress.step < last:
        statistics.keep()
        rows, used, terms = [], 0, torch.zeros(())
        for micro in range(accum):
            batch = next(batches)
            pending.left_out += batch.get("bad", [])
            used += len(batch["row"]) + len(batch.get("bad", []))
            usable = len(batch["row"]) > 0
            if not usable:  # the other processes average gradients in this step, so this one adds some of weight 0
                batch = _any_batch(loader)
            inputs = [tensor.to(device, non_blocking=True) for tensor in inputs_of(batch)]
            vis, ir, *_ = inputs
            target = batch["target"].to(device, non_blocking=True) if "target" in batch else None
            with distributed.without_averaging(model, micro < accum - 1):
                with autocast(device, dtype):
                    output = model(*inputs)
                loss, parts = criterion(output, vis, ir, target)
                finite = loss.detach() * 0 + 1  # 1, or NaN, which then reaches the gradients of every process
                scaler.scale(loss * finite * usable / accum).backward()
            rows.append(batch["row"])
            terms = terms + torch.stack(list(parts.values())) / accum

        scaler.unscale_(optimizer)
        norms = {name: torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
                 for name, network in networks.items()}
        norm = torch.stack(list(norms.values())).norm()
        if grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, grad_clip, norm)
        scaler.step(optimizer)  # does nothing if a gradient is not finite, which is decided on the device
        scaler.update(None if dtype == torch.float16 else 1.0)
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        statistics.put_back_unless(norm.isfinite())
        if ema is not None:
            ema.update(distributed.unwrap(model))

        progress.step += 1
        used *= distributed.world_size()
        progress.samples, samples = progress.samples + used, samples + used
        pending.add(torch.cat(rows), dict(zip(parts, terms, strict=True)), norms)
        bar.update()
        due = autosave.due()
        if due or progress.step % print_freq == 0 or progress.step == last:
            latest = pending.read()
            seconds = time.perf_counter() - clock
            progress.seconds += seconds
            bar.set_postfix({name: f"{value:.3f}" for name, value in progress.means().items()
                             if name in ("total", "seg", "fusion")}, refresh=False)
            if on_terms is not None:
                on_terms(latest, samples / seconds)
            if due:
                autosave.save()
            if due == STOP:
                bar.close()
                autosave.stop()
            clock, samples = time.perf_counter(), 0
    bar.close()


def _any_batch(loader: Loader) -> dict:
    """A batch of one usable row."""
    for row in range(len(loader.dataset)):
        batch = loader.collate_fn([loader.dataset[row]])
        if len(batch["row"]):
            return batch
    raise InputError("none of the rows can be used; the messages about them say why")


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, device: torch.device, thresholds: Sequence[float] = THRESHOLDS,
             on_batch: Callable[[dict, Output], None] | None = None, bad: list[str] | None = None,
             dtype: torch.dtype | None = None, criterion: Criterion | None = None) -> tuple[dict[str, float], Tensor]:
    """Segmentation metrics over the samples of all processes.

    Args:
        model: not wrapped, with a segmenter.
        loader: gives this process's share of the data set.
        thresholds: the t of precision@t.
        on_batch: called with each batch and the model's output, for pictures.
        bad: the messages about rows that the data set left out, in all processes, are appended to it.
        dtype: as in `train_one_epoch`.
        criterion: from `build_criterion`, for this process alone; adds `val_seg` and `val_total` to the metrics, the
            means of these losses over all samples.
    Returns:
        The metrics in percent (see `evaluation.metrics.summarise`), over the rows that could be used; and (N, 5) int64
        pixel counts by row, N being the length of the data set, all 0 for rows that were left out.
    Raises:
        InputError: no row could be used.
    """
    model.eval()
    counts = torch.zeros(len(loader.dataset), 5, dtype=torch.int64)
    messages: list[str] = []
    losses = _Means()
    for batch, output in _outputs(model, loader, device, dtype, messages):
        target = batch["target"].to(device)
        assert output.logits is not None
        counts[batch["row"]] = pixel_counts(output.logits, target).cpu()
        if criterion is not None:
            terms = criterion(output, batch["vis"].to(device), batch["ir"].to(device), target)[1]
            losses.add({name: terms[name] for name in ("seg", "total")}, len(target))
        if on_batch is not None:
            on_batch(batch, output)
    counts = distributed.total(counts)
    if bad is not None:
        bad += distributed.joined(messages)
    used = usable_rows(counts)
    if not len(used):
        raise InputError("none of the rows can be used; the messages about them say why")
    return summarise(counts[used], thresholds) | losses.gather(), counts


@torch.inference_mode()
def evaluate_fusion(model: nn.Module, criterion: Criterion, loader: Loader, device: torch.device,
                    on_batch: Callable[[dict, Output], None] | None = None, bad: list[str] | None = None,
                    dtype: torch.dtype | None = None) -> dict[str, float]:
    """The means of all loss terms over all samples, named `val_` and the term, of a model without segmenter.

    Arguments and errors as for `evaluate`.
    """
    model.eval()
    messages: list[str] = []
    losses = _Means()
    for batch, output in _outputs(model, loader, device, dtype, messages):
        vis, ir = batch["vis"].to(device), batch["ir"].to(device)
        losses.add(criterion(output, vis, ir, None)[1], len(vis))
        if on_batch is not None:
            on_batch(batch, output)
    if bad is not None:
        bad += distributed.joined(messages)
    means = losses.gather()
    if not means:
        raise InputError("none of the rows can be used; the messages about them say why")
    return means


class _Means:
    """Means of loss terms over samples, from the means over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor], count: int) -> None:
        """Add the terms of a batch of `count` samples."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * count
        self.count += count

    def gather(self) -> dict[str, float]:
        """The means over the batches of all processes, by `val_` and the term's name; empty if there are none."""
        shares = distributed.gather((self.sums, self.count))
        count = sum(share for _, share in shares)
        return {f"val_{name}": sum(share.get(name, 0.0) for share, _ in shares) / count
                for name in max((share for share, _ in shares), key=len)}


def _outputs(model: nn.Module, loader: Loader, device: torch.device, dtype: torch.dtype | None, messages: list[str]
             ) -> Iterator[tuple[dict, Output]]:
    """Yield each batch with the model's output; messages about rows that were left out are appended to `messages`."""
    for batch in progress_bar(loader, desc="evaluate", unit="batch", disable=distributed.rank() > 0):
        messages += batch.get("bad", [])
        if len(batch["row"]):
            with autocast(device, dtype):
                output = model(*(tensor.to(device, non_blocking=True) for tensor in inputs_of(batch)))
            yield batch, output
