"""Activation checkpointing (Chen et al., 2016): compute parts of the forward pass again in the backward pass.

A module is switched to it by a subclass that is assigned to its `__class__`, so that the names of tensors stay, and
copies of the model have it too.
"""
import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ..fuser import DoubleConv, Down, Up
from ..lavt import Decoder
from ..pwam import PWAM
from ..swin import SwinBlock

# The results that selective checkpointing keeps. Everything else, attention included, is cheap to compute again.
EXPENSIVE = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.convolution.default]
LARGE = 900_000  # bytes of a module's input, from which on the memory is worth the time


def save_memory(model: nn.Module, device: torch.device, at_least: int = LARGE) -> None:
    """Activation checkpointing of what is large and cheap, for training on a CPU.

    The fuser's levels and PWAM are computed again as a whole. Of Swin's blocks and of the decoder the results of matrix
    products and convolutions are kept. On other devices nothing changes: their fused attention keeps no scores.

    Args:
        model: a `RISFusion`; changed in place, gradients and state dict stay the same.
        device: where it is trained.
        at_least: bytes of a module's first input; with smaller ones everything is kept.
    """
    if device.type == "cpu":
        kept = {SwinBlock: EXPENSIVE, Decoder: EXPENSIVE, PWAM: [], DoubleConv: [], Down: [], Up: []}
        _install(model, kept, at_least)


def checkpoint_activations(model: nn.Module) -> None:
    """Full activation checkpointing: Swin's blocks are computed again as a whole, too, whatever their size.

    The decoder, nearly half of all operations, still keeps the results of its convolutions.

    Args:
        model: a `RISFusion`; changed in place, gradients and state dict stay the same.
    """
    _install(model, {SwinBlock: [], Decoder: EXPENSIVE, PWAM: [], DoubleConv: [], Down: [], Up: []}, 0)


def _install(module: nn.Module, kept: dict[type, list], at_least: int) -> None:
    """Switch the outermost modules of the kinds in `kept` to recomputation that keeps the results of its operations."""
    kind: type = type(module)
    if kind in kept:
        module.__class__ = _recomputed(kind)
        assert isinstance(module, Recomputed)
        module.kept_operations, module.recompute_at_least = kept[kind], at_least
    else:
        for child in module.children():
            _install(child, kept, at_least)


@functools.cache
def _recomputed(kind: type) -> type:
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})


class Recomputed(nn.Module):
    """Mixed into the class of a module: its forward pass is computed again in the backward pass.

    The results are those of the plain module: dropout draws the same again, and running statistics are updated once.
    """

    kept_operations: list  # whose results are kept; the inputs alone if there are none
    recompute_at_least: int  # bytes of the first input; with a smaller one everything is kept

    def forward(self, *inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        """As of the plain module."""
        first = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or first.nbytes < self.recompute_at_least:
            return super().forward(*inputs)
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For the first and for the second computation."""
        if not self.kept_operations:
            return contextlib.nullcontext(), _frozen_statistics(self)
        keep, reuse = create_selective_checkpoint_contexts(self.kept_operations)
        return keep, _both(_frozen_statistics(self), reuse)


@contextlib.contextmanager
def _both(one: AbstractContextManager, other: AbstractContextManager) -> Iterator[None]:
    with one, other:
        yield


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """A context in which batch norm in training mode does not update its running statistics."""
    norms = [(part, part.momentum, batches, batches.clone()) for part in module.modules()
             if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
             and (batches := part.num_batches_tracked) is not None]
    for norm, *_ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches, before in norms:
            norm.momentum = momentum
            batches.copy_(before)  # checkpoint() may have stopped before this layer's update
