"""DataLoaders: what a data set's samples become batches by, in training and in evaluation."""
import torch
from torch.utils.data import DataLoader, Dataset

from utils import distributed
from utils.workers import leave_signals_to_the_parent

from .mm_ris import collate
from .sampler import EpochSampler, share


def training_loader(dataset: Dataset, batch_size: int, accum_steps: int = 1, *, seed: int = 0, workers: int = 0,
                    pin_memory: bool = False) -> DataLoader:
    """This process's share of shuffled epochs; `loader.sampler.set_epoch` goes to any sample of any epoch.

    Args:
        dataset: an `MMRISDataset`.
        batch_size: samples in a batch of each process.
        accum_steps: batches of each process that make up one optimizer step.
        seed: of the order, together with the number of the epoch.
        workers: worker processes; 0: the batches are made in this process.
        pin_memory: whether batches lie in page-locked memory.
    """
    world_size = distributed.world_size()
    sampler = EpochSampler(dataset, batch_size * accum_steps * world_size, distributed.rank(), world_size, seed)
    return _loader(dataset, sampler, batch_size, workers, pin_memory)


def evaluation_loader(dataset: Dataset, batch_size: int, *, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """This process's share of the rows, in their order; arguments as in `training_loader`."""
    return _loader(dataset, share(len(dataset), distributed.rank(), distributed.world_size()), batch_size, workers,
                   pin_memory)


def _loader(dataset: Dataset, sampler, batch_size: int, workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate,
        pin_memory=pin_memory, worker_init_fn=leave_signals_to_the_parent,
        # Creating an iterator draws a number: from this generator, so that the run's own state does not depend on it.
        generator=torch.Generator())
