"""The order in which a training epoch reads the rows, and which process reads which of them."""
import numpy as np
import torch


def epoch_order(dataset, seed: int, epoch: int) -> np.ndarray:
    """All rows of a data set once, shuffled; the same for the same files, seed and epoch on any machine.

    Where all row groups are small (see `ReadLimits`; `data/merge_parquet.py` and `data/build_parquet.py` write them so,
    and a cache has them), this is `np.random.default_rng([seed, epoch]).permutation(len(dataset))`.

    Otherwise reading a single row would cost its whole row group. Then the row groups are shuffled, and the rows within
    windows: a window is a run of whole row groups of up to `window_bytes` together, or, of a larger row group, one of
    its consecutive parts, which follow one another as in the file. A file of a single large row group is therefore
    read from front to back, and rows change places only with their neighbours.

    Every n-th row of the order, from any start, is still read window by window: a process may take its share by
    striding, and a resumed run may skip the rows that it has read.

    Args:
        dataset: `MMRISDataset`, or anything with `__len__`, `windows()` and `limits` as in `ParquetRows`.
        seed, epoch: ints from 0 on.
    Returns:
        (len(dataset),) int64 row numbers.
    """
    generator = np.random.default_rng([seed, epoch])
    groups = dataset.windows()
    if groups is None:
        return generator.permutation(len(dataset))
    windows: list[list[np.ndarray]] = []
    room = 0
    for number in generator.permutation(len(groups)).tolist():
        whole = len(groups[number]) == 1
        for start, stop, size in groups[number]:
            if not whole or size > room:
                windows.append([])
                room = dataset.limits.window_bytes
            windows[-1].append(np.arange(start, stop))
            room = room - size if whole else 0  # a part of a large group is a window of its own
    return np.concatenate([generator.permutation(np.concatenate(window)) for window in windows])


class EpochSampler(torch.utils.data.DistributedSampler):
    """A DistributedSampler that can start in the middle of an epoch, with the same steps for any number of processes.

    One step uses `step_samples` consecutive rows of the epoch's order, however many processes share them. The last
    incomplete step is left out.

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
    """This process's share of `count` rows: consecutive ones, each in one share; sizes differ by one row at most."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
