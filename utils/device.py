"""Everything that depends on the kind of device: Ascend NPU, CUDA GPU, CPU."""
import contextlib
import importlib.util
import logging
import random
import re
import sys
import time

import numpy as np
import torch

from .errors import UsageError
from .text import counted, printable

logger = logging.getLogger(__name__)

COLLECTIVES = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}


def select_device(name: str | torch.device, local_rank: int | None = None) -> torch.device:
    """The device of a name.

    Args:
        name: `auto` (an Ascend NPU if torch_npu sees one, else CUDA, else CPU), `cuda`, `npu` or `cpu`; an index may
            follow, as in `cuda:1`. A `torch.device` is taken too.
        local_rank: this process's number among those of the job on this machine, if there are several: picks one
            device for each.
    Raises:
        UsageError: the name is none of these, or there is no such device here; its `argument` is `device`.
    """
    name = str(name)
    if name == "auto":
        name = "npu" if _count("npu") else "cuda" if _count("cuda") else "cpu"
    kind, _, index = name.partition(":")
    if kind == "mps":
        raise UsageError(f"'{printable(name)}': GPUs of Apple are not supported; use cpu", "device")
    if kind not in ("cuda", "npu", "cpu") or not re.fullmatch("|:(0|[1-9][0-9]{0,3})", name.removeprefix(kind)):
        raise UsageError(f"'{printable(name)}' is none of auto, cuda, npu and cpu, nor one with an index as in cuda:1",
                         "device")
    count = _count(kind)
    if not count:
        needs = {"cuda": "an NVIDIA GPU with its driver and a CUDA build of PyTorch",
                 "npu": "an Ascend NPU, the CPU build of PyTorch and torch_npu of the same version"}
        raise UsageError(f"{name}: none is available here; it needs {needs[kind]}", "device")
    if index and int(index) >= count:
        raise UsageError(f"{name}: there are {count} here, numbered from 0", "device")
    if kind == "cpu" or local_rank is None:
        device = torch.device(name)
    else:
        if index:
            raise UsageError(f"{name}: with several processes each takes a device of its own; leave out the index "
                             f"(CUDA_VISIBLE_DEVICES picks among them)", "device")
        if local_rank >= count:
            raise UsageError(f"{name}: process {local_rank} of this machine finds {count} devices; "
                             f"start at most {count} processes, as in --nproc_per_node={count}", "device")
        device = torch.device(kind, local_rank)
    if device.index is not None:
        torch.get_device_module(kind).set_device(device)
    return device


def _count(kind: str) -> int:
    """How many devices of a kind can be used; 0 if its software is not installed or does not load."""
    if kind == "cpu":
        return 1
    if kind == "npu":
        if importlib.util.find_spec("torch_npu") is None:
            return 0
        try:
            importlib.import_module("torch_npu")  # adds torch.npu
        except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library that is damaged
            logger.warning("torch_npu is installed but does not load: %s", error)
            return 0
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def describe(device: torch.device) -> str:
    """The device and its model, as in `cuda:0 (NVIDIA H200)`."""
    if device.type == "cpu":
        return f"cpu ({counted(torch.get_num_threads(), 'thread')})"
    return f"{device} ({torch.get_device_module(device).get_device_name(device)})"


def backend(device: torch.device) -> str:
    """The process-group backends of a job on such devices: the device's own, and gloo for what lies on the CPU."""
    return "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{COLLECTIVES[device.type]}"


def can_sync_batchnorm(device: torch.device) -> bool:
    """Whether PyTorch has SyncBatchNorm for the device."""
    return device.type != "cpu"


def can_pin_memory(device: torch.device) -> bool:
    """Whether copies from page-locked memory are faster than others."""
    return device.type != "cpu"


def autocast(device: torch.device, dtype: torch.dtype | None):
    """A context in which networks compute in `dtype`; None leaves them at float32."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def grad_scaler(device: torch.device, dtype: torch.dtype | None) -> torch.amp.GradScaler:
    """A scaler that keeps small gradients from underflowing in float16, and skips non-finite steps in any precision.

    Outside float16 its scale is to be held at 1 by `scaler.update(1.0)`. The skipping costs no host sync where the
    optimizer is fused.
    """
    return torch.amp.GradScaler(device.type, init_scale=2.0 ** 16 if dtype == torch.float16 else 1.0)


def has_fused_optimizers(device: torch.device) -> bool:
    """Whether `torch.optim.AdamW(fused=True)` is known to run on the device."""
    return device.type != "npu"


def has_onednn(device: torch.device) -> bool:
    """Whether convolutions on the device are oneDNN's, which is fastest on images stored as NHWC."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def compile_mode(device: torch.device) -> str:
    """The mode of `torch.compile` for evaluation: on a CUDA GPU the one with CUDA graphs."""
    return "reduce-overhead" if device.type == "cuda" else "default"


def is_slow(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether a CPU without instructions for a 16-bit type computes in it many times slower; measured."""
    if device.type != "cpu" or dtype is None:
        return False

    def seconds(matrix: torch.Tensor) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    matrix = torch.ones(128, 128)
    return seconds(matrix.to(dtype)) > 4 * seconds(matrix)


def warn_if_slow(device: torch.device, dtype: torch.dtype | None) -> None:
    """Warn where a 16-bit type makes a program many times slower."""
    if is_slow(device, dtype):
        logger.warning("WARNING: this CPU has no instructions for %s and takes many times longer than in float32; "
                       "compute in float32 (leave out amp)", str(dtype).removeprefix("torch."))


def allow_tf32(device: torch.device) -> None:
    """Let float32 matrix products and convolutions use TensorFloat-32 where the device has it."""
    torch.set_float32_matmul_precision("high")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = True


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that tensors on the device occupied at once; for the CPU, that the process occupied.

    0 for the CPU on Windows, where Python cannot tell.
    """
    if device.type == "cpu":
        try:
            import resource
        except ImportError:
            return 0
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return torch.get_device_module(device).max_memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` measure from now on; for the CPU only on Linux."""
    if device.type == "cpu":
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    else:
        torch.get_device_module(device).reset_peak_memory_stats(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device or the machine has run out of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in (
            "out of memory", "can't allocate memory", "not enough memory")))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """The states of all random generators of this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
             "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    """Restore all generators from a `random_state`; that of the device stays as it is if the state has none.

    Raises:
        ValueError, and others of NumPy and PyTorch: the state is of another form.
    """
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    if keys.dtype != torch.int64 or not bool(((keys >= 0) & (keys < 2 ** 32)).all()):
        raise ValueError("the numbers of NumPy's generator are not of 32 bits")
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
