"""What a file of weights may hold: checked in one place, before anything in it is used."""
import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .foreign import WEIGHTS
from .text import printable


def check_structure(content: Any, path: str) -> None:
    """Check that a file holds names and values, that its state dicts hold tensors, and that all tensors are plain.

    Plain tensors are dense, on the CPU, and no larger than the memory that the file has for them.

    Args:
        content: what `torch.load` returned.
        path: the file, for the messages.
    Raises:
        InputError: anything else.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: the content is of type {type(content).__name__}, not a dict of weights")
    _check_names(content, path, "")
    for part in WEIGHTS:
        if content.get(part) is not None:
            _check_state_dict(content[part], path, part)
    for name, tensor in _tensors(content):
        if reason := _unusual(tensor):
            raise InputError(f"{path}: the tensor {printable(name)} is {reason}; save it again as a dense CPU tensor")


def check_finite(content: dict, path: str) -> None:
    """Check that all weights are finite: with others a network finds nothing, and its scores are 0.

    Raises:
        InputError: naming the first tensor with a NaN or an infinity.
    """
    state_dicts = {f" of {part!r}": content[part] for part in WEIGHTS if isinstance(content.get(part), dict)}
    for of, tensors in {"": content, **state_dicts}.items():
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
                raise InputError(f"{path}: the tensor '{printable(name)}'{of} holds NaN or infinity, as after a "
                                 "training that diverged; take the checkpoint of an earlier epoch")


def size_of(tensors: dict[str, Tensor]) -> int:
    """Bytes of the tensors of a state dict."""
    return sum(tensor.nbytes for tensor in tensors.values())


def embedded_bert(content: dict, path: str) -> dict[str, Any] | None:
    """BERT's configuration and vocabulary that a checkpoint carries, as plain values.

    Returns:
        A dict with `config` (dict) and `vocabulary` (list of str in the order of their ids); None if there is none.
    Raises:
        InputError: the entry is of another form.
    """
    bert = content.get("bert")
    if bert is None:
        return None
    if not isinstance(bert, dict) or not isinstance(bert.get("config"), dict) or not isinstance(
            bert.get("vocabulary"), list):
        raise InputError(f"{path}: the entry 'bert' does not hold a configuration and a list of words")
    return bert


def _check_names(entries: dict, path: str, of: str) -> None:
    for name in entries:
        if not isinstance(name, str):
            raise InputError(f"{path}: a key{of} is of type {type(name).__name__}, not text; is it a file of weights?")


def _check_state_dict(tensors: Any, path: str, part: str) -> None:
    if not isinstance(tensors, dict):
        raise InputError(f"{path}: the entry {part!r} is of type {type(tensors).__name__}, not a dict of tensors")
    _check_names(tensors, path, f" of {part!r}")
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {printable(name)} of {part!r} is of type {type(value).__name__}, not a tensor")


def _tensors(content: dict) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file with their names, in whatever lists, dicts and Namespaces they are."""
    waiting, seen = [("", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
            continue
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if not isinstance(value, dict | list | tuple | set | frozenset) or id(value) in seen:
            continue
        seen.add(id(value))  # a pickled list can hold itself
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in items
                    if isinstance(item, Tensor | argparse.Namespace | dict | list | tuple | set | frozenset)]


def _unusual(tensor: Tensor) -> str:
    """What makes a tensor unusable here; empty for a plain one."""
    for is_so, word in ((tensor.is_nested, "nested"), (tensor.layout != torch.strided, "sparse"),
                        (tensor.is_quantized, "quantised"), (tensor.is_complex(), "complex"),
                        (tensor.device.type != "cpu", f"on the device {tensor.device.type}, without values")):
        if is_so:
            return word
    claimed = math.prod(tensor.shape) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    return f"of {claimed} bytes, of which the file holds {held}" if claimed > held else ""
