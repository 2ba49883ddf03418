"""The roofline model checked where it can be: predicted and measured on this CPU, with its own measured rates."""
import argparse
import statistics

import torch
from devices import this_cpu
from measure import SHAPES, machine, make_batch, make_model, print_table
from parts import PartClock
from recording import record_evaluation, record_training
from roofline import cost, kind, totals

from models import INPUTS, build_criterion


def report_errors(shape: str, side: int) -> dict:
    """Print predicted and measured milliseconds of one evaluation of batch 1, and of a training step of demo sizes.

    Both are of the plain model in float32, as `build_model` returns it: what `models/fast` does on a CPU (Winograd's
    algorithm, operators computed again) is not what a GPU runs.
    """
    device, launch = this_cpu()
    report = {"machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(),
              "float32": device.float32, "bandwidth": device.bandwidth, "launch": launch}
    print(f"\nThis CPU, {report['threads']} threads: {device.float32 / 1e9:.0f} GFLOP/s in a 2048³ product, "
          f"{device.bandwidth / 1e9:.1f} GB/s in a copy, {1e6 * launch:.1f} µs an operator")
    demo = argparse.Namespace(**vars(SHAPES["demo"]))
    for what, name, batch_size, pixels in (("eval", shape, 1, side), ("train", "demo", demo.batch_size, demo.img_size)):
        record = record_evaluation(name, 1, pixels, prepared=False) if what == "eval" else record_training(
            name, batch_size, pixels)
        sums = totals(record.operators, lambda op: cost(op, device, launch), lambda op: (op.network, kind(op)))
        measured = _measured(what, name, batch_size, pixels)
        rows = []
        for (network, which), seconds in measured.items():
            predicted = sums[network, which].seconds
            rows.append([f"{network}, {which}", 1e3 * predicted, 1e3 * seconds, 100 * (predicted / seconds - 1)])
        whole = [sum(row[i] for row in rows) for i in (1, 2)]
        rows.append(["together", *whole, 100 * (whole[0] / whole[1] - 1)])
        title = "An evaluation" if what == "eval" else "A training step"
        print_table(f"{title} of {name} sizes, batch {batch_size}, on this CPU, milliseconds",
                    ["", "predicted", "measured", "error, percent"], rows)
        report[what] = rows
    return report


def _measured(what: str, shape: str, batch_size: int, side: int) -> dict[tuple[str, str], float]:
    """Seconds by network and pass, the medians of three runs."""
    cpu = torch.device("cpu")
    model, batch = make_model(shape, cpu).train(what == "train"), make_batch(batch_size, side, cpu)
    criterion, clock = build_criterion(SHAPES[shape]), PartClock(model, cpu)
    clock.time(criterion, "forward", "losses")
    runs = []
    for _ in range(4):
        clock.clear()
        with torch.set_grad_enabled(what == "train"):
            output = model(*(batch[name] for name in INPUTS))
        if what == "train":
            criterion(output, batch["vis"], batch["ir"], batch["target"])[0].backward()
            clock.leave()
            model.zero_grad()
        runs.append({(part, which): seconds for which, parts in clock.seconds.items() for part, seconds in parts.items()
                     if part})
    return {where: statistics.median(run[where] for run in runs[1:]) for where in runs[0]}
