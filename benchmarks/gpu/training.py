"""How fast a training step is in each precision, and the largest batch."""
import functools
import time

import torch
from bench_train import Ours, step_clock
from measure import make_batch
from parts import report_parts

from utils.device import grad_scaler, peak_memory, reset_peak_memory

from .child import why

WAYS = {  # flags by row
    "float32": {}, "TF32": {}, "bf16": {"amp": True},
    "bf16, channels-last": {"amp": True, "channels_last": True}, "bf16, compiled": {"amp": True, "torchcompile": True}}
BASE = 16  # samples of a batch that larger ones repeat
MOST = 4096
SEARCH_SECONDS = 30


def eager(bench) -> None:
    """The rows that are not compiled."""
    for row in ("bf16", "bf16, channels-last", "TF32", "float32"):
        bench.use_tf32(row == "TF32")
        bench.row(row, functools.partial(_step, bench, row))


def compiled(bench) -> None:
    """The row in bfloat16, compiled."""
    bench.row("bf16, compiled", lambda: _step(bench, "bf16, compiled"))


def make_step(bench, row: str, batch_size: int) -> Ours:
    """A training step as a row has it."""
    return Ours(bench.args(batch_size), bench.device, model=bench.model(), **WAYS[row])


def _step(bench, row: str) -> tuple[dict, dict]:
    start = time.perf_counter()
    way, size = bench.fitting(lambda size: make_step(bench, row, size), bench.batch)
    figures = {"batch": size, "px": bench.side, "first steps, s": time.perf_counter() - start,
               **bench.speed(way.run, size, 3 * size * bench.forward_flops())}
    if "compiled" in row:
        return figures, {}
    milliseconds = report_parts(way, step_clock(way, bench.device), bench.args(size))["milliseconds"]
    names = list(dict.fromkeys(name for kind in milliseconds.values() for name in kind))
    table = {"head": ["", *milliseconds], "rows": [
        [name, *(kind.get(name, "") for kind in milliseconds.values())] for name in names]}
    return figures, {"milliseconds by network, each waited for": table}


def largest_batch(bench) -> None:
    """The row without activation checkpointing."""
    bench.row("largest batch, bf16", lambda: _largest(bench))


def largest_batch_checkpointing(bench) -> None:
    """The row with it."""
    bench.row("largest batch, bf16 and --grad-checkpointing", lambda: _largest(bench, grad_checkpointing=True))


def _largest(bench, **flags) -> dict:
    way = Ours(bench.args(1), bench.device, amp=True, model=bench.model(), **flags)
    way.run()  # makes the optimizer's moments
    base = make_batch(BASE, bench.side, torch.device("cpu"))
    errors, peaks = {0: ""}, {0: 0.0}  # by size

    def fits(size: int) -> bool:
        rows = torch.arange(size)
        batch = {name: tensor[rows % BASE] for name, tensor in base.items()} | {"row": rows}
        way.scaler = grad_scaler(bench.device, way.dtype)  # an earlier one may have stopped in the middle of a step
        reset_peak_memory(bench.device)
        try:
            way.train_on([batch] * 2)
        except (RuntimeError, MemoryError) as error:  # memory, or a kernel that cannot index so many elements
            errors[size] = why(error)
        peaks[size] = peak_memory(bench.device) / 1e9
        way.optimizer.zero_grad(set_to_none=True)
        bench.free()
        return size not in errors

    size, sure = search(fits, bench.batch, time.monotonic() + SEARCH_SECONDS)
    larger = [failed for failed in errors if failed > size]
    if not size and larger:
        raise RuntimeError(errors[min(larger)])
    return {"px": bench.side, "samples": size, "peak GB": peaks[size],
            "an eighth more": "does not fit" if sure else "was not tried",
            "larger": errors[min(larger)] if larger else "was not tried"}


def search(fits, start: int, deadline: float) -> tuple[int, bool]:
    """The largest size that fits, to an eighth of itself, by doubling or halving, then bisection.

    Args:
        fits: size → bool.
        start: the first size to try.
        deadline: of `time.monotonic`, after which no further size is tried.
    Returns:
        The size, 0 if none fits, and whether it is known that nothing larger by an eighth does.
    """
    low, high = 0, 0
    size = start
    while time.monotonic() < deadline:
        if fits(size):
            low = size
        else:
            high = size
        if high == 0:
            if low >= MOST:
                break
            size = 2 * low
        elif low == 0:
            if high == 1:
                break
            size = high // 2
        elif high - low > max(low // 8, 1):
            size = (low + high) // 2
        else:
            return low, True
    return low, high == 1
