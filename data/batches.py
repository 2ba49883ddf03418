"""Samples of the data set as a batch, also across processes."""
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BadRow:
    """In place of a sample, with `bad_rows="skip"`: the row, counted over all files, and a sentence on its fault."""

    row: int
    message: str


class Samples(list):
    """Samples and `BadRow`s; `tensors` holds the images and targets of all samples, stacked."""

    tensors: dict[str, torch.Tensor]


def collate(samples: list[dict | BadRow]) -> dict:
    """Samples of `MMRISDataset` as one batch, without rows that could not be used.

    Returns:
        What a sample holds: tensors stacked, `row` (B,) int64, `mask`, `size`, `lumas`, `fused_luma` and `pictures`
        still lists; and `bad`, a list of sentences on the rows left out. If none is left, `row`, of length 0, and `bad`
        alone.
    """
    good = [sample for sample in samples if not isinstance(sample, BadRow)]
    bad = [sample.message for sample in samples if isinstance(sample, BadRow)]
    batch = {"row": torch.tensor([sample["row"] for sample in good], dtype=torch.int64), "bad": bad}
    ready = samples.tensors if isinstance(samples, Samples) else {}
    for key in good[0] if good else ():
        if key != "row":
            values = [sample[key] for sample in good]
            is_tensor = isinstance(values[0], torch.Tensor)
            batch[key] = ready[key] if key in ready else torch.stack(values) if is_tensor else values
    return batch if torch.utils.data.get_worker_info() is None else _sendable(batch, ready.values())


def _sendable(batch: dict, images: Iterable[torch.Tensor]) -> dict:
    """A worker process's batch with all tensors in shared memory, or, where that is full, with all that need none.

    PyTorch moves a tensor to shared memory while it sends it, in a thread whose errors nobody sees.
    """
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    enough = all(image.is_shared() for image in images)
    try:
        for tensor in tensors.values() if enough else ():
            tensor.share_memory_()
    except RuntimeError:
        enough = False
    return batch if enough else batch | {key: _SentByPipe(tensor) for key, tensor in tensors.items()}


class _SentByPipe:
    """Pickles a tensor by its content; what arrives is a tensor."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)
