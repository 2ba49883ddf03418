"""The memory that training takes: what lowers it, and what is said when it runs out."""
import contextlib
import importlib.util

import torch
from torch import nn

from utils.device import is_out_of_memory
from utils.errors import InputError, UsageError

# The folder may be deleted: the same results, slower and in more memory.
fast = importlib.import_module("models.fast") if importlib.util.find_spec("models.fast") else None


def lower_memory(model: nn.Module, device: torch.device, activation_checkpointing: bool) -> None:
    """Make a model train in less memory.

    Args:
        model: a `models.RISFusion`.
        device: where it trains.
        activation_checkpointing: lower the memory as far as possible, at the price of time.
    Raises:
        UsageError: activation checkpointing needs `models/fast/`, which is absent.
    """
    if activation_checkpointing:
        if fast is None:
            raise UsageError("the folder models/fast/, which it needs, is absent; leave the flag out",
                             "grad-checkpointing")
        fast.checkpoint_activations(model)
        fast.return_freed_memory(device)
    elif fast is not None:
        fast.save_memory(model, device)
        fast.keep_freed_memory(device)


@contextlib.contextmanager
def out_of_memory_says(what: str, ways: list[str]):
    """A context in which running out of memory is an error of one sentence.

    Args:
        what: needs the memory, and where.
        ways: what to do about it.
    Raises:
        InputError
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory with {what}; {', '.join(ways)}") from error
