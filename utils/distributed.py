"""Several processes that train together, started by torchrun or Slurm; every function also serves a lone process."""
import contextlib
import logging
import os
import re
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from . import device as devices
from .errors import InputError, UsageError
from .streams import log_to_stdout
from .text import first_line, printable
from .workers import end_workers


def local_rank() -> int | None:
    """This process's number on its machine; None when it was started alone.

    Raises:
        UsageError: the environment says something else than a number.
    """
    if "LOCAL_RANK" not in os.environ or "RANK" not in os.environ:
        return None
    text = os.environ["LOCAL_RANK"]
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UsageError(f"the environment variable LOCAL_RANK is '{printable(text)}', not a number of a process; "
                         "start with torchrun, or unset it")
    return int(text)


def start(device: torch.device, timeout_minutes: float) -> None:
    """Join the other processes of the job, if the environment says that there are any.

    Args:
        timeout_minutes: how long an operation may wait for the others before the job is given up.
    Raises:
        UsageError: the environment is incomplete.
        InputError: the others cannot be reached.
    """
    if local_rank() is None:
        return
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"the environment names RANK but not {', '.join(missing)}; start with torchrun, or set all")
    options = {} if device.type == "cpu" else {"device_id": device}
    try:
        dist.init_process_group(devices.backend(device), timeout=timedelta(minutes=timeout_minutes), **options)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the other processes of the job cannot be reached at {os.environ['MASTER_ADDR']}:"
                         f"{os.environ['MASTER_PORT']} ({first_line(error)})") from error


def stop() -> None:
    """End a job that has succeeded: each of several processes exits here, a lone process continues.

    The exit code is 0, or 1 if standard output could not be written.

    The interpreter's teardown is skipped: gloo's threads outlive `destroy_process_group`, and with them running the
    teardown sometimes aborts ("terminate called without an active exception", PyTorch 2.15), which fails the job.
    """
    if active():
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(getattr(sys.stdout, "failed", False)))


def active() -> bool:
    """Whether there are other processes, or could be."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number in the job; the one with 0 writes."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if active() else 1


def mean(value: Tensor) -> Tensor:
    """The mean of a float tensor over the processes, on any device; a lone process gets the tensor itself."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world_size()


def total(value: Tensor) -> Tensor:
    """The sum over the processes of a tensor on the CPU."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def largest(number: int) -> int:
    """The largest of the numbers of all processes; exchanged over the CPU, so that nothing waits for the device."""
    if world_size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def gather(value: Any) -> list:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def joined(values: list) -> list:
    """The lists of all processes as one, in the order of their ranks."""
    return [value for share in gather(values) for value in share]


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of rank 0: running statistics differ where batch norm is not synchronised."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wait_for_all() -> None:
    """Return when all processes have called this."""
    largest(0)


@contextlib.contextmanager
def job(device: torch.device, timeout_minutes: float):
    """A context for a script's work in this process, be it alone or one of a job; afterwards as `stop`.

    Logging goes to standard output, from the main process alone but for errors.

    Args:
        device: of this process.
        timeout_minutes: how long an operation may wait for the other processes.
    Raises:
        UsageError, InputError: as `start` and `peers_watched`.
    """
    start(device, timeout_minutes)
    log_to_stdout(logging.INFO if rank() == 0 else logging.ERROR)
    try:
        with peers_watched(timeout_minutes):
            yield
    finally:
        end_workers()
    stop()


@contextlib.contextmanager
def peers_watched(timeout_minutes: float):
    """A context in which the loss of another process is an error of one sentence.

    Raises:
        InputError: another process has died, or has not answered for `timeout_minutes`.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise InputError(f"process {rank()}: another process of the job has died or has not answered within "
                         f"{timeout_minutes:g} minutes; look for its message, then start the job again, training with "
                         "--resume auto") from error


def is_lost_peer(error: BaseException) -> bool:
    """Whether `error` means that another process has died or does not answer any more."""
    return active() and world_size() > 1 and isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(words in str(error).lower() for words in (
            "connection closed by peer", "connection reset by peer", "timed out", "broken pipe", "gloo")))


def wrap(model: nn.Module, device: torch.device, bf16_gradients: bool = False) -> nn.Module:
    """The model as DistributedDataParallel; unchanged for a lone process.

    Buffers are not sent in each forward pass: in training no result depends on running statistics, those of rank 0 are
    saved, and `share_buffers` gives them to all before validation.

    Args:
        bf16_gradients: exchange gradients in bfloat16: half the bytes, and averages rounded to 8 bits.
    """
    if world_size() == 1:
        return model
    wrapped = nn.parallel.DistributedDataParallel(
        model, device_ids=None if device.type == "cpu" else [device], broadcast_buffers=False,
        gradient_as_bucket_view=True)
    if bf16_gradients:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def unwrap(model: nn.Module) -> nn.Module:
    """The model that `wrap` was given."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def without_averaging(model: nn.Module, skip: bool):
    """A context in which DistributedDataParallel leaves each process its own gradients, if `skip`."""
    several = isinstance(model, nn.parallel.DistributedDataParallel)
    return model.no_sync() if skip and several else contextlib.nullcontext()
