"""Train one epoch, evaluate one data set."""
import math
import sys

import torch
from tqdm import tqdm

from utils.errors import InputError
from utils.metrics import THRESHOLDS, pixel_counts, summarise, usable_rows

INPUTS = ("vis", "ir", "input_ids", "attention_mask")


def train_one_epoch(model, criterion, loader, optimizer, scheduler, device, epoch: int,
                    grad_clip: float = 0.0, print_freq: int = 10) -> dict[str, float]:
    """One pass over `loader`, one optimizer and scheduler step for each batch.

    Args:
        model, criterion: from `build_model` and `build_criterion`.
        loader: gives batches as `data.collate` makes them.
        epoch: shown in the progress bar.
        grad_clip: largest 2-norm of all gradients together; 0 leaves them as they are.
        print_freq: steps between two readings of the loss terms, each of which waits for the device.
    Returns:
        The mean of every loss term.
    Raises:
        InputError: the loss is no longer finite.
    """
    model.train()
    sums: dict[str, torch.Tensor] = {}  # on the device, so that a step need not wait for it
    bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", file=sys.stdout, dynamic_ncols=True)
    for step, batch in enumerate(bar, start=1):
        vis, ir, input_ids, attention_mask = (batch[name].to(device, non_blocking=True) for name in INPUTS)
        target = batch["target"].to(device, non_blocking=True)
        loss, terms = criterion(model(vis, ir, input_ids, attention_mask), vis, ir, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        scheduler.step()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term
        if step % print_freq == 0 or step == len(loader):
            means = {name: float(value) / step for name, value in sums.items()}
            if not math.isfinite(means["total"]):
                bad = ", ".join(name for name, value in means.items() if not math.isfinite(value))
                raise InputError(f"epoch {epoch}, at or before step {step}: the loss is no longer finite ({bad}); "
                                 "lower --lr_seg and --lr_pf or set --grad_clip")
            bar.set_postfix({name: f"{means[name]:.3f}" for name in ("total", "seg", "fusion")})
    return means


@torch.inference_mode()
def evaluate(model, loader, device, thresholds=THRESHOLDS, on_batch=None,
             bad: list[str] | None = None) -> tuple[dict[str, float], torch.Tensor]:
    """Segmentation metrics over `loader`, each sample with its sentence.

    Args:
        thresholds: the t of precision@t.
        on_batch: called with each batch and the model's output, for pictures.
        bad: gets the messages about rows that the data set left out.
    Returns:
        The metrics in percent (see `utils.metrics.summarise`), over the rows that could be used; and (N, 5) int64
        pixel counts by row, N being the length of the data set, all 0 for rows that were left out.
    Raises:
        InputError: no row could be used.
    """
    model.eval()
    counts = torch.zeros(len(loader.dataset), 5, dtype=torch.long)
    for batch in tqdm(loader, desc="evaluate", unit="batch", file=sys.stdout, dynamic_ncols=True):
        if bad is not None:
            bad += batch.get("bad", [])
        if not len(batch["row"]):
            continue
        output = model(*(batch[name].to(device, non_blocking=True) for name in INPUTS))
        counts[batch["row"]] = pixel_counts(output.logits, batch["target"].to(device)).cpu()
        if on_batch is not None:
            on_batch(batch, output)
    used = usable_rows(counts)
    if not len(used):
        raise InputError("none of the rows can be used; the messages about them say why")
    return summarise(counts[used], thresholds), counts
