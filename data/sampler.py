"""Which process reads which rows, in which order."""
import torch

from .order import epoch_order


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
