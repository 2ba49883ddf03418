"""DataLoaders: how a data set's samples become batches, in training and in evaluation."""
import atexit
import logging
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from utils import distributed
from utils.errors import InputError
from utils.workers import leave_signals_to_the_parent

from .batches import collate
from .mm_ris import MMRISDataset
from .sampler import EpochSampler, share

logger = logging.getLogger(__name__)


class BatchLoader(DataLoader):
    """A DataLoader that reports a dead worker process in one sentence.

    Raises (while iterating):
        InputError: a worker process has died, as when memory runs out.
    """

    _workers: frozenset = frozenset()

    def check_worker_number_rationality(self) -> None:
        """Do not warn of more workers than cores, as PyTorch does: where they wait for the disk, it is no mistake."""

    def __iter__(self) -> Iterator[dict]:
        before = set(multiprocessing.active_children())
        batches = super().__iter__()
        started = set(multiprocessing.active_children()) - before  # with persistent_workers, in the first epoch only
        self._workers |= started
        for worker in started:
            atexit.register(worker.kill)  # they ignore the signal by which Python would end them
        if self._workers and threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises an error wherever the main thread is when a worker process dies; without it, the
            # error is raised here, when the next batch is asked for.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                codes = self._exit_codes(wait=not isinstance(error, RuntimeError))
                if not codes:
                    raise
                raise InputError(f"a worker process that loads data was ended by {_name_exit(codes[0])}; this happens "
                                 "when memory runs out: use fewer workers or smaller batches") from error
            yield batch

    def _exit_codes(self, wait: bool) -> list[int]:
        """Of the worker processes that have failed; `wait` for one that is about to end, with a batch half sent."""
        if wait:
            ended = multiprocessing.connection.wait([worker.sentinel for worker in self._workers], timeout=10)
            for worker in self._workers:
                if worker.sentinel in ended:
                    worker.join(10)
        return [worker.exitcode for worker in self._workers if worker.exitcode]


def _name_exit(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"


def training_loader(dataset: MMRISDataset, batch_size: int, accum_steps: int = 1, *, seed: int = 0, workers: int = 0,
                    pin_memory: bool = False) -> DataLoader:
    """This process's share of shuffled epochs; `loader.sampler.set_epoch` goes to any sample of any epoch.

    Args:
        dataset: what to read; a warning says if its row groups are too large for a full shuffle.
        batch_size: samples in a batch of each process.
        accum_steps: batches of each process that make up one optimizer step.
        seed: of the order, together with the number of the epoch.
        workers: worker processes; 0: the batches are made in this process.
        pin_memory: whether batches lie in page-locked memory.
    """
    if dataset.windows() is not None:
        logger.warning("%s: rows are shuffled only within parts of %d MB; %s", *(
            ("the training data are read from a URL", dataset.limits.window_bytes // 10**6, "name a folder for a copy "
             "of them with cache_dir, or download them") if dataset.remote else
            ("the row groups of the training data are large", dataset.limits.window_bytes // 10**6, "`python "
             "data/merge_parquet.py FILE --out OTHER.parquet` rewrites a file in small row groups")))
    world_size = distributed.world_size()
    sampler = EpochSampler(dataset, batch_size * accum_steps * world_size, distributed.rank(), world_size, seed)
    return _loader(dataset, sampler, batch_size, workers, pin_memory)


def evaluation_loader(dataset: Dataset, batch_size: int, *, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """This process's share of the rows, in their order; arguments as in `training_loader`."""
    return _loader(dataset, share(len(dataset), distributed.rank(), distributed.world_size()), batch_size, workers,
                   pin_memory)


def _loader(dataset: Dataset, sampler, batch_size: int, workers: int, pin_memory: bool) -> DataLoader:
    return BatchLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate,
        pin_memory=pin_memory, worker_init_fn=leave_signals_to_the_parent,
        # Creating an iterator draws a random number: from this generator, so that the run's own state stays the same.
        generator=torch.Generator())
