"""What the C library glibc does with the memory of freed tensors on a CPU. Elsewhere these functions do nothing."""
import contextlib
import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep the memory of freed tensors for the next ones: faster.

    By default glibc returns blocks above 32 MB to the system, which maps and clears them anew for the next tensor.
    All threads share what is kept.
    """
    _call_glibc(device, ("mallopt", M_ARENA_MAX, 1), ("mallopt", M_MMAP_THRESHOLD, 2**30),
                ("mallopt", M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory(device: torch.device) -> None:
    """Return the memory of freed tensors of 1 MB and more to the system at once: less memory, slower.

    Memory that is free already is returned too. By default glibc keeps freed blocks of up to 32 MB, into whose gaps
    other tensors do not fit.
    """
    _call_glibc(device, ("mallopt", M_MMAP_THRESHOLD, 2**20), ("malloc_trim", 0))


def trim_freed_memory(device: torch.device) -> None:
    """Return what is free now to the system, once; for large blocks that do not fit the gaps between others."""
    _call_glibc(device, ("malloc_trim", 0))


def _call_glibc(device: torch.device, *calls: tuple) -> None:
    """Call functions of glibc, each given as its name and arguments, if tensors are in its memory."""
    if device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            for function, *arguments in calls:
                getattr(ctypes.CDLL(None), function)(*arguments)
