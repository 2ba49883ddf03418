"""Where the time of a training step goes: the dearest kernels, how many there are, and when none runs."""
import gzip
import json
import os
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity

from .training import WAYS, make_step

STEPS, SHOWN = 3, 20
KINDS = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace's events that occupy a GPU


def training_step(bench) -> None:
    """The row: the fastest way to train that was measured before, bf16 if none was."""
    bench.row("the best training row", lambda: _profile(bench))


def best_row(training: dict[str, dict]) -> str:
    """The row with the most samples a second."""
    rates = {row: figures["samples/s"] for row, figures in training.items() if row in WAYS}
    return max(rates, key=rates.get, default="bf16")


def _profile(bench) -> tuple[dict, dict]:
    training = bench.earlier.get("training", {})
    row = best_row(training)
    cuda = bench.device.type == "cuda"
    bench.use_tf32(row == "TF32")
    way, size = bench.fitting(lambda size: make_step(bench, row, size), training.get(row, {}).get("batch", bench.batch))
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as taken:
        way.run(STEPS)
    path = os.path.join(bench.out, "training_step_trace.json.gz")
    taken.export_chrome_trace(path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    figures, table = summarise(events, KINDS if cuda else ("cpu_op",), STEPS)
    figures = {"profiled": row, "batch": size, "px": bench.side, **figures, "trace": os.path.basename(path)}
    if not cuda:
        figures = {name: value for name, value in figures.items() if "kernel" not in name} | {
            "operators a step": figures["kernels a step"],
            "kernels": "left out: a CPU has none; the table has operators, each with those it calls"}
    elif "ms" in training.get(row, {}):  # the profiler slows the host down, not the kernels
        unprofiled = training[row]["ms"]
        figures |= {"ms a step, unprofiled": unprofiled,
                    "share without a kernel, unprofiled": max(0.0, 1 - figures["busy, ms a step"] / unprofiled)}
    return figures, {f"the {SHOWN} dearest": table}


def summarise(events: list[dict], kinds: tuple[str, ...], steps: int) -> tuple[dict, dict]:
    """Figures and a table of the events of some kinds in a Chrome trace, whose `ts` and `dur` are in microseconds.

    Args:
        events: `traceEvents`.
        kinds: the categories `cat` that count; the first one's events are numbered.
        steps: that the trace covers.
    """
    chosen = [event for event in events if event.get("cat") in kinds and event.get("ph") == "X"]
    if not chosen:
        raise RuntimeError(f"the trace has no events of the kinds {', '.join(kinds)}")
    spans = sorted((float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in chosen)
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    total = until - spans[0][0]
    times, counts = defaultdict(float), defaultdict(int)
    for event in chosen:
        times[event["name"]] += float(event["dur"])
        counts[event["name"]] += 1
    dearest = sorted(times, key=times.get, reverse=True)[:SHOWN]
    everything = sum(times.values())
    table = {"head": ["", "ms a step", "share", "times a step"], "rows": [
        [name[:100], times[name] / 1e3 / steps, times[name] / everything, counts[name] / steps] for name in dearest]}
    numbered = sum(event["cat"] == kinds[0] for event in chosen)
    return {"kernels a step": numbered / steps, "busy, ms a step": busy / 1e3 / steps,
            "share without a kernel, profiled": 1 - busy / total if total else 0.0}, table
