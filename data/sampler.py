"""In which order a training epoch reads the rows, and which process reads which of them."""
import numpy as np
import torch

from . import parquet_rows


def epoch_order(dataset, seed: int, epoch: int) -> np.ndarray:
    """All rows of a data set once, shuffled; the same for the same files, seed and epoch on any machine.

    Where all row groups are small (at most FEW_ROWS rows or SMALL_GROUP bytes, as `data/merge_parquet.py` and
    `data/build_parquet.py` write them), this is `np.random.default_rng([seed, epoch]).permutation(len(dataset))`.

    Otherwise reading a row alone would cost its whole row group. Then the row groups are shuffled, and the rows within
    windows: a window is a run of whole row groups up to WINDOW_BYTES together, or, of a row group larger than that, one
    of its consecutive parts, which follow one another as in the file. A file of a single large row group is therefore
    read from front to back, and only neighbours change places.

    Every n-th row of it, from any start on, is still read window by window: a process may take its share by striding,
    and a run that is resumed may leave out what it has had.

    Args:
        dataset: `MMRISDataset`; anything with `__len__`, and `windows()` as `ParquetRows` has it.
        seed, epoch: whole numbers from 0 on.
    Returns:
        (len(dataset),) int64 row numbers.
    """
    generator = np.random.default_rng([seed, epoch])
    groups = dataset.windows()
    if groups is None:
        return generator.permutation(len(dataset))
    windows: list[list[np.ndarray]] = []
    room = 0
    for place in generator.permutation(len(groups)).tolist():
        whole = len(groups[place]) == 1
        for start, stop, size in groups[place]:
            if not whole or size > room:
                windows.append([])
                room = parquet_rows.WINDOW_BYTES
            windows[-1].append(np.arange(start, stop))
            room = room - size if whole else 0  # parts of a large group stay alone
    return np.concatenate([generator.permutation(np.concatenate(window)) for window in windows])


class EpochSampler(torch.utils.data.DistributedSampler):
    """A DistributedSampler that can start in the middle of an epoch, and whose steps do not depend on who takes part.

    One step uses `step_samples` neighbours of the epoch's order, whatever the number of processes that share them. The
    last incomplete step is left out.

    Args:
        dataset: has a length.
        step_samples: samples in one optimizer step, over all processes; a multiple of `world_size`.
        rank, world_size: this process and how many there are.
        seed: of the order.
    """

    def __init__(self, dataset, step_samples: int, rank: int = 0, world_size: int = 1, seed: int = 0):
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        self.step_samples = step_samples
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to sample `start` of `epoch`, counted over all processes."""
        super().set_epoch(epoch)
        self.start = start

    def __len__(self) -> int:
        return max(len(self.dataset) - self.start, 0) // self.step_samples * self.step_samples // self.num_replicas

    def __iter__(self):
        order = epoch_order(self.dataset, self.seed, self.epoch)[self.start:]
        return iter(order[self.rank::self.num_replicas][:len(self)].tolist())


def share(count: int, rank: int, world_size: int) -> range:
    """This process's rows of `count`: neighbours, each row with one process, the shares as equal as can be."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
