"""How fast a training step is, and how much memory it takes, beside the plain model.

    python benchmarks/bench_train.py [--shape readme|demo] [-b N] [--device cpu] [--profile DIR] [--out FILE.json]

The ways build on each other up to `default`, which is what train_with_lavt.py does; then come flags of it. Each is
measured in turn with the baseline, the model as build_model gives it in a plain training loop, and a matrix product, in
processes of their own.
"""
import argparse
import contextlib
import gc
import io
import json
import os
import sys
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

import torch
from measure import (
    SHAPES,
    add_shared_flags,
    compare,
    complete,
    fast_enough,
    forward_flops,
    machine,
    make_batch,
    make_model,
    print_comparison,
    save,
    serve,
)
from parts import PartClock, parts_apart, print_parts, report_parts, write_profile

from engine import Progress, train_one_epoch
from models import INPUTS, build_criterion
from models.fast import checkpoint_activations, keep_freed_memory, return_freed_memory, save_memory
from training.optimizer import build_optimizer, trained_networks
from utils.device import grad_scaler
from utils.errors import run
from utils.flags import ArgumentParser

BASELINE = "plain"
PLAIN = [BASELINE, "cheap operations computed again", "and AdamW fused"]
FLAGS = {
    "default": {},
    "channels-last": {"channels_last": True},
    "grad-checkpointing": {"grad_checkpointing": True},
    "amp": {"amp": True},
    "amp+channels-last": {"amp": True, "channels_last": True},
    "torchcompile": {"torchcompile": True},
    "amp+channels-last+torchcompile": {"amp": True, "channels_last": True, "torchcompile": True},
}


class Plain:
    """A plain training loop: it reads every loss and collects garbage in every step."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device):
        step = PLAIN.index(name)
        self.model, self.device = make_model(args.shape, device).train(), device
        self.criterion = build_criterion(SHAPES[args.shape])
        self.batch = make_batch(args.batch_size, args.img_size, device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=step >= 2 or None)
        if step >= 1:
            save_memory(self.model, device)

    def run(self, steps: int = 1) -> None:
        batch = self.batch
        for _ in range(steps):
            output = self.model(*(batch[name] for name in INPUTS))
            loss, terms = self.criterion(output, batch["vis"], batch["ir"], batch["target"])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            for term in terms.values():
                term.item()
            gc.collect()
            if self.device.type != "cpu":
                torch.get_device_module(self.device).empty_cache()


class Ours:
    """`engine.train_one_epoch`, as train_with_lavt.py calls it with these flags; on `model` if there is one already."""

    def __init__(self, args: argparse.Namespace, device: torch.device, *, amp=False, channels_last=False,
                 grad_checkpointing=False, torchcompile=False, model: torch.nn.Module | None = None):
        model = (model or make_model(args.shape, device)).train()
        model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        if grad_checkpointing:
            checkpoint_activations(model)
            return_freed_memory(device)
        else:
            save_memory(model, device)
            keep_freed_memory(device)
        if torchcompile:
            model.compile()
        self.model, self.device = model, device
        self.criterion = build_criterion(SHAPES[args.shape]).to(device)
        batch = make_batch(args.batch_size, args.img_size, torch.device("cpu"))
        self.batch = batch | {"row": torch.arange(args.batch_size)}
        if device.type == "cuda":
            self.batch = {name: tensor.pin_memory() for name, tensor in self.batch.items()}
        self.optimizer = build_optimizer(model, device, lr_seg=1e-5, lr_pf=1e-5, wd_seg=1e-2, wd_pf=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.networks = trained_networks(model)
        self.dtype = torch.bfloat16 if amp else None
        self.scaler = grad_scaler(device, self.dtype)

    def run(self, steps: int = 1) -> None:
        self.train_on([self.batch] * steps)

    def train_on(self, loader, print_freq: int = 10) -> Progress:
        """An epoch of the batches of `loader`, which has a length; what was learnt of the losses."""
        progress, never = Progress(), SimpleNamespace(due=lambda: 0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_one_epoch(self.model, self.criterion, loader, self.optimizer, self.scheduler, self.scaler,
                            self.device, progress, never, networks=self.networks, dtype=self.dtype,
                            print_freq=print_freq)
        return progress


def make(name: str, args: argparse.Namespace, device: torch.device) -> Plain | Ours:
    return Plain(name, args, device) if name in PLAIN else Ours(args, device, **FLAGS[name])


def measure_parts(args: argparse.Namespace, device: torch.device) -> dict:
    """Time or memory of the way that `--parts` names."""
    way = make(args.parts, args, device)
    return report_parts(way, step_clock(way, device), args)


def step_clock(way: Plain | Ours, device: torch.device) -> PartClock:
    """A clock on the networks, the losses and the optimizer of a training step."""
    clock = PartClock(way.model, device)
    clock.time(way.criterion, "forward", "losses")
    step = way.optimizer.step

    def enter_and_step(*inputs, **named):
        clock.enter("optimizer")
        step(*inputs, **named)
        clock.leave()

    way.optimizer.step = enter_and_step
    return clock


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_shared_flags(parser)
    ways = [*PLAIN[1:], *FLAGS]
    parser.add_argument("--ways", nargs="+", choices=ways, metavar="WAY",
                        default=[way for way in ways if "compile" not in way], help=f"which of: {'; '.join(ways)}")
    args = parser.parse_args()
    device = complete(args)
    if args.way:
        serve(make(args.way, args, device).run, device, args.times)
        return
    if args.parts:
        print(json.dumps(measure_parts(args, device)))
        return

    report = {"machine": machine(device), "shape": vars(SHAPES[args.shape]) | {
        "batch_size": args.batch_size, "img_size": args.img_size}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    flops = report["forward_flops"] = forward_flops(args.shape, args.img_size)
    report["steps"] = compare(__file__, [BASELINE, *fast_enough(args.ways, device)], args, device,
                              3 * args.batch_size * flops["total"])
    print_comparison(f"A training step, {args.shape} sizes, {args.img_size} px, batch {args.batch_size}; forward pass "
                     f"{flops['total'] / 1e9:.1f} GFLOP a sample, step three times that", report["steps"])
    report["parts"] = parts_apart(__file__, [BASELINE, "default"], args)
    print_parts(report["parts"])
    if args.profile:
        write_profile(args.profile, {name: make(name, args, device).run for name in (BASELINE, "default")},
                      report["parts"])
    save(report, args.out)


if __name__ == "__main__":
    run(main)
