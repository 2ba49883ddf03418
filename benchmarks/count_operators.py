"""How many operators a training step launches, by part; the number does not depend on the machine's speed.

    python benchmarks/count_operators.py [--shape readme|demo] [--amp] [--grad-checkpointing]

An operator counts if it computes: views and uninitialised memory do not. A CPU computes attention with a trained bias
in separate operators, where a GPU has one kernel, so that a GPU launches fewer in forward and backward pass.
"""
import contextlib
import io
import os
import sys
from collections import Counter
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

import torch
from measure import SHAPES, make_batch, make_model, print_table
from torch.utils._python_dispatch import TorchDispatchMode

from engine import Progress, train_one_epoch
from models import build_criterion
from models.fast import checkpoint_activations
from training.optimizer import build_optimizer, trained_networks
from utils.device import grad_scaler
from utils.errors import run
from utils.flags import ArgumentParser

# Pads the same stages of Swin to whole windows as the published 480 pixels, so that the operators are the same.
SIDE = 96
BOOKKEEPING = "bookkeeping"  # what is neither of the networks nor of losses, backward pass or optimizer
NOT_COMPUTING = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
                 "aten::_unsafe_view", "profiler::_record_function_enter_new", "profiler::_record_function_exit")


class OperatorCount(TorchDispatchMode):
    """Counts operators by the part of a training step that launches them.

    Attributes:
        by_part: for each part, how often each operator was launched, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_part: dict[str, Counter[str]] = {}
        self.part = BOOKKEEPING

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function._schema.name not in NOT_COMPUTING:
            self.by_part.setdefault(self.part, Counter())[function._schema.name] += 1
        return function(*args, **(kwargs or {}))

    def total(self, part: str | None = None) -> int:
        """Operators of a part, or of all."""
        return sum(counts.total() for name, counts in self.by_part.items() if part in (None, name))

    def counted(self, part: str, function):
        """The function, what it launches being counted for `part`."""
        def call(*inputs, **named):
            self.part = part
            try:
                return function(*inputs, **named)
            finally:
                self.part = BOOKKEEPING
        return call


def count_step(shape: str, amp: bool = False, grad_checkpointing: bool = False, accum: int = 1) -> OperatorCount:
    """The operators of one step of `train_one_epoch` with one sample of 96 pixels in a batch.

    As on a GPU: what only a CPU recomputes (`models.fast.save_memory`) is left out.

    Args:
        shape: a key of `measure.SHAPES`.
        amp: in bfloat16.
        grad_checkpointing: with full activation checkpointing.
        accum: batches of the step.
    """
    cpu = torch.device("cpu")
    model = make_model(shape, cpu)
    if grad_checkpointing:
        checkpoint_activations(model)
    criterion = build_criterion(SHAPES[shape])
    optimizer = build_optimizer(model, cpu, lr_seg=1e-5, lr_pf=1e-5, wd_seg=1e-2, wd_pf=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    dtype = torch.bfloat16 if amp else None
    batches = [make_batch(1, SIDE, cpu) | {"row": torch.arange(1)}] * accum
    never = SimpleNamespace(due=lambda: 0)

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_one_epoch(model, criterion, batches, optimizer, scheduler, grad_scaler(cpu, dtype), cpu, Progress(),
                            never, networks=trained_networks(model), dtype=dtype, accum=accum)

    step()  # makes what is kept from step to step
    count = OperatorCount()
    model.forward = count.counted("forward", model.forward)
    criterion.forward = count.counted("losses", criterion.forward)
    optimizer.step = count.counted("optimizer", optimizer.step)
    with mock.patch.object(torch.Tensor, "backward", count.counted("backward", torch.Tensor.backward)), count:
        step()
    return count


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["readme", "demo"], default="readme",
                        help="sizes of the published networks, or of make demo")
    parser.add_argument("--amp", action="store_true", help="run the networks in bfloat16")
    parser.add_argument("--grad-checkpointing", action="store_true", help="with full activation checkpointing")
    args = parser.parse_args()
    count = count_step(args.shape, args.amp, args.grad_checkpointing)
    print_table("Operators of a training step", ["", "operators", "percent", "most frequent"], [
        [part, count.total(part), 100 * count.total(part) / count.total(),
         ", ".join(f"{number} {name.removeprefix('aten::')}" for name, number in counts.most_common(5))]
        for part, counts in count.by_part.items()])
    print(f"{count.total()} in all")


if __name__ == "__main__":
    run(main)
