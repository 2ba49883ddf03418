"""Checkpoints that other programs or devices wrote: which Python objects are read, and how keys become ours."""
import argparse
import contextlib
import logging
import re
import threading
from pathlib import PurePosixPath, PureWindowsPath
from unittest import mock

import numpy as np
import torch
from torch import Tensor, _weights_only_unpickler

from .errors import InputError
from .text import counted, printable

logger = logging.getLogger(__name__)

WEIGHTS = ("model", "prefusion_model", "bert_model")  # entries of a file that hold state dicts
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # DDP, torch.compile, FSDP
UNUSED_OF_BERT = re.compile(r"(text_encoder\.)?(embeddings\.position_ids$|pooler\.)")
PLAIN_NPU_FORMATS = (-1, 0, 2)  # undefined, NCHW and ND by Ascend's numbers; other formats reorder or pad the data

_one_at_a_time = threading.Lock()  # PyTorch's lists of admitted names are global


def normalise(content: dict, path: str) -> dict:
    """Convert a file's state dicts to the keys of our networks and to float32; each kind of change is logged once.

    Prefixes of wrapped modules (DDP, torch.compile, FSDP) are removed anywhere in a key. BERT's pooler and
    position ids, which RIS-FUSION does not use, are dropped. Tensors of other floating-point types become float32.

    Args:
        content: what the file holds, checked by `content.check_structure`. Its state dicts are the entries named in
            `WEIGHTS`; if it holds tensors itself, it is one.
        path: the file, for the messages.
    Returns:
        A dict of the same form; all other entries are unchanged.
    Raises:
        InputError: two keys are the same without their prefixes.
    """
    changes = _Changes()
    if any(isinstance(value, Tensor) for value in content.values()):
        content = changes.apply(content, path)
    parts = {name: changes.apply(content[name], path) for name in WEIGHTS if isinstance(content.get(name), dict)}
    changes.report(path)
    return content | parts


class _Changes:
    """Normalises the state dicts of one file and counts the changes."""

    def __init__(self):
        self.prefixes, self.unprefixed = set(), 0
        self.unused = []
        self.types, self.converted = set(), 0

    def apply(self, tensors: dict, path: str) -> dict:
        result = {}
        for key, value in tensors.items():
            name = self._without_prefixes(key)
            if UNUSED_OF_BERT.match(name):
                self.unused.append(name)
                continue
            if name in result:
                raise InputError(f"{path}: '{printable(name)}' occurs twice, with the prefix of a wrapped module and "
                                 "without; save one of the two alone")
            result[name] = self._in_float32(value) if isinstance(value, Tensor) else value
        return result

    def _without_prefixes(self, key: str) -> str:
        *words, last = key.split(".")
        found = WRAPPERS.intersection(words)
        self.prefixes |= found
        self.unprefixed += bool(found)
        return ".".join([word for word in words if word not in WRAPPERS] + [last])

    def _in_float32(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == torch.float32:
            return tensor
        self.types.add(str(tensor.dtype).removeprefix("torch."))
        self.converted += 1
        return tensor.float()

    def report(self, path: str) -> None:
        if self.prefixes:
            logger.info("%s: prefixes of wrapped modules removed from the names of %s: %s", path,
                        counted(self.unprefixed, "tensor"), ", ".join(f"`{word}.`" for word in sorted(self.prefixes)))
        if self.unused:
            logger.info("%s: unused tensors of BERT dropped: %s", path, printable(", ".join(self.unused)))
        if self.types:
            logger.info("%s: %s of type %s converted to float32, in which the networks compute", path,
                        counted(self.converted, "tensor"), " and ".join(sorted(self.types)))


@contextlib.contextmanager
def admitted():
    """Within the block, `torch.load(weights_only=True)` also reads what checkpoints of other programs commonly hold.

    `argparse.Namespace` is admitted as it is. The other names are mapped to functions of this module, so no code of
    another package runs: paths become str, NumPy scalars Python values, NPU tensors CPU tensors, and a device of a type
    that this PyTorch does not know becomes str.
    """
    admit = torch.serialization.safe_globals([argparse.Namespace, *REPLACEMENTS])
    # safe_globals cannot replace a name that PyTorch admits itself, so `torch.device` is replaced in its own table.
    own = mock.patch.dict(_weights_only_unpickler._get_allowed_globals(), {"torch.device": _device})
    with _one_at_a_time, admit, own:
        yield


def _device(*words):
    try:
        return torch.device(*words)
    except RuntimeError:  # "npu" without torch_npu
        return ":".join(map(str, words))


def _npu_tensor(storage, offset, size, stride, _requires_grad, _hooks, layout) -> Tensor:
    """Takes the arguments of torch_npu's function `_rebuild_npu_tensor`; the tensor is on the CPU."""
    if not isinstance(layout, int) or layout not in PLAIN_NPU_FORMATS:
        raise InputError(f"holds tensors in a layout that only an Ascend NPU can read (format {printable(layout)}); "
                         "save it again on the NPU machine, with every tensor moved by `.cpu()`")
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride)


def _posix_path(*parts) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts) -> str:
    return str(PureWindowsPath(*parts))


class _NumPyType:
    """Stands in for `numpy.dtype`, whose unpickling also accepts objects and structures."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple):
        self.order = state[1]


def _numpy_scalar(kind: _NumPyType, data: bytes):
    """The Python value of a NumPy number, bool, str or bytes."""
    if not re.fullmatch(r"[<>|=][biufcUS]\d{1,6}", kind.order + kind.code):
        raise InputError(f"holds a NumPy value of type '{printable(kind.code)}', which is neither number nor text; "
                         "save it again with plain Python values")
    return np.frombuffer(data, kind.order + kind.code).item()


REPLACEMENTS = [  # (what is called instead, the name in the file)
    (_npu_tensor, "torch_npu.utils.storage._rebuild_npu_tensor"),
    (_NumPyType, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),   # NumPy 1
    (_numpy_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
    *((path, f"{module}.{pure}{name}Path") for module in ("pathlib", "pathlib._local")  # the latter: Python 3.13
      for pure in ("", "Pure") for name, path in (("Posix", _posix_path), ("Windows", _windows_path))),
]
