"""Activation checkpointing (Chen et al., 2016): compute parts of the forward pass twice rather than remember them."""
import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, *inputs):
    """`module(*inputs)`, of which only the inputs are kept until the backward pass.

    The numbers are those of a plain call: dropout repeats itself, and batch norm's running statistics are brought up
    to date once, not twice.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False,
                      context_fn=lambda: (contextlib.nullcontext(), _running_statistics_left_alone(module)))


@contextlib.contextmanager
def _running_statistics_left_alone(module: nn.Module):
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.sub_(1)
