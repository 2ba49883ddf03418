"""Activation checkpointing (Chen et al., 2016): compute parts of the forward pass twice rather than remember them."""
import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

LARGE = 2_500_000  # bytes of an input, from which on memory counts for more than time


def call(function, *inputs):
    """`function(*inputs)`, to stand in for `recompute`."""
    return function(*inputs)


def recompute(function, *inputs):
    """`function(*inputs)`, of which only the inputs are kept until the backward pass.

    The numbers are those of a plain call: dropout repeats itself, and batch norm's running statistics are brought up
    to date once, not twice.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False,
                      context_fn=lambda: (contextlib.nullcontext(), _running_statistics_left_alone(function)))


def recompute_cheap(function, *inputs):
    """`recompute` for what costs little to compute again and is large; on the CPU alone.

    There PyTorch's fused attention has no gradient for its mask, and what takes its place keeps all weights. A compiler
    decides for itself what to keep.
    """
    if torch.compiler.is_compiling() or inputs[0].device.type != "cpu" or inputs[0].nbytes < LARGE:
        return function(*inputs)
    return recompute(function, *inputs)


@contextlib.contextmanager
def _running_statistics_left_alone(function):
    parts = function.modules() if isinstance(function, nn.Module) else ()
    norms = [part for part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)  # the second pass may have ended before it came here
