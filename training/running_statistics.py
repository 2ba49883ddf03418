"""The running statistics of batch norm, put back after a step that was not finite."""
import torch
from torch import Tensor, nn


class RunningStatistics:
    """Running means and variances of a model, all kept and put back together.

    That takes four operators instead of four for each of the tensors, of which the published model has 56.

    Args:
        model: has batch norm, whose running statistics are (channels,) and of one type.
    """

    def __init__(self, model: nn.Module):
        self._buffers = [buffer for name, buffer in model.named_buffers() if "running_" in name]
        self._sizes = [len(buffer) for buffer in self._buffers]
        self._kept = torch.empty(0)

    def keep(self) -> None:
        """Remember the statistics as they are."""
        self._kept = torch.cat(self._buffers)

    def put_back_unless(self, finite: Tensor) -> None:
        """Return to what was kept unless `finite`, a bool scalar on the device, is true; the host does not wait."""
        chosen = torch.where(finite, torch.cat(self._buffers), self._kept)
        torch._foreach_copy_(self._buffers, chosen.split(self._sizes))
