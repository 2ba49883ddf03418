"""Train one epoch, evaluate one data set."""
import time

import torch

from evaluation.metrics import THRESHOLDS, pixel_counts, summarise, usable_rows
from models import INPUTS
from training.autosave import STOP
from training.progress import PendingTerms, Progress
from utils import distributed
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress_bar


def train_one_epoch(model, criterion, loader, optimizer, scheduler, scaler, device, progress: Progress, autosave, *,
                    networks: dict, dtype=None, accum: int = 1, grad_clip: float = 0.0, print_freq: int = 10,
                    max_bad_steps: int = 10, ema=None, on_terms=None) -> None:
    """What is left of one pass over the data, one optimizer and scheduler step for every `accum` batches.

    A step whose loss or gradient is not finite changes neither weights nor running statistics.

    Args:
        model: from `build_model`, or that in DistributedDataParallel.
        criterion: from `build_criterion`.
        loader: gives the batches that are left of the epoch, as `data.collate` makes them.
        scaler: from `utils.device.grad_scaler`.
        progress: brought up to date whenever the loss terms are read.
        autosave: a `training.autosave.Autosave`, asked after each step.
        networks: name → module, whose gradient norms are reported.
        dtype: for the networks' forward pass, float16 or bfloat16; None: float32. Losses are float32 in any case.
        grad_clip: largest 2-norm of all gradients together; 0 leaves them as they are.
        print_freq: steps between two readings of the loss terms, each of which waits for the device.
        max_bad_steps: so many steps in a row that are not finite end the run.
        ema: a `timm.utils.ModelEmaV3` to update with the model.
        on_terms: called with the latest terms and norms by name, and the samples per second since the last call.
    Raises:
        InputError: the loss stays non-finite.
        Stopped: a signal asked the run to stop; everything has been saved.
    """
    model.train()
    statistics = [buffer for name, buffer in model.named_buffers() if "running_" in name]
    parameters = [p for p in model.parameters() if p.requires_grad]
    last = progress.step + len(loader) // accum
    pending = PendingTerms(progress, scaler, dtype, max_bad_steps)
    bar = progress_bar(total=last, initial=progress.step, desc=f"epoch {progress.epoch}", unit="step",
                       disable=distributed.rank() > 0)
    batches = iter(loader)
    clock, samples = time.perf_counter(), 0
    while progress.step < last:
        kept = [buffer.clone() for buffer in statistics]
        rows, terms, used = [], {}, 0
        for micro in range(accum):
            batch = next(batches)
            pending.left_out += batch.get("bad", [])
            used += len(batch["row"]) + len(batch.get("bad", []))
            usable = len(batch["row"]) > 0
            if not usable:  # other processes take part in this step, so this one computes it too, with weight 0
                batch = _any_batch(loader)
            vis, ir, input_ids, attention_mask = (batch[name].to(device, non_blocking=True) for name in INPUTS)
            target = batch["target"].to(device, non_blocking=True) if "target" in batch else None
            with distributed.without_averaging(model, micro < accum - 1):
                with autocast(device, dtype):
                    output = model(vis, ir, input_ids, attention_mask)
                loss, parts = criterion(output, vis, ir, target)
                finite = loss.detach() * 0 + 1  # 1, or NaN, which then reaches the gradients of every process
                scaler.scale(loss * finite * usable / accum).backward()
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
        pending.add(torch.cat(rows), terms, norms)
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
    """Each batch with the model's output; messages about rows that were left out are added to `messages`."""
    for batch in progress_bar(loader, desc="evaluate", unit="batch", disable=distributed.rank() > 0):
        messages += batch.get("bad", [])
        if len(batch["row"]):
            with autocast(device, dtype):
                output = model(*(batch[name].to(device, non_blocking=True) for name in INPUTS))
            yield batch, output
