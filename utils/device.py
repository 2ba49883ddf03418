"""The one place that knows kinds of devices: Ascend NPU, CUDA GPU, CPU."""
import importlib.util
import logging
import random

import numpy as np
import torch

from .errors import UsageError

log = logging.getLogger(__name__)


def select_device(name: str) -> torch.device:
    """The device that `--device` asks for.

    Args:
        name: `auto` (an Ascend NPU if torch_npu sees one, else CUDA, else CPU), `cuda`, `npu` or `cpu`; the middle
            two may carry an index, as in `cuda:1`.
    Raises:
        UsageError: the name is none of these, or there is no such device here.
    """
    if name == "auto":
        kind = "npu" if _count("npu") else "cuda" if _count("cuda") else "cpu"
        return torch.device(kind)
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "npu", "cpu") or (":" in name and not index.isdecimal()):
        raise UsageError(f"--device: {name!r} is none of auto, cuda, npu and cpu, nor one with an index as in cuda:1")
    count = _count(kind)
    if not count:
        needs = {"cuda": "an NVIDIA GPU with its driver and a CUDA build of PyTorch",
                 "npu": "an Ascend NPU, the CPU build of PyTorch and torch_npu of the same version"}
        raise UsageError(f"--device {name}: none is available here; it needs {needs[kind]}")
    if index and int(index) >= count:
        raise UsageError(f"--device {name}: there are {count} here, numbered from 0")
    return torch.device(name)


def _count(kind: str) -> int:
    """How many devices of a kind can be used; 0 when its software is not installed or does not load."""
    if kind == "cpu":
        return 1
    if kind == "npu":
        if importlib.util.find_spec("torch_npu") is None:
            return 0
        try:
            importlib.import_module("torch_npu")  # adds torch.npu
        except (ImportError, RuntimeError) as error:
            log.warning("torch_npu is installed but does not load: %s", error)
            return 0
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
