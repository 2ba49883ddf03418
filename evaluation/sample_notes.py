"""What the metrics do not show of the samples: which show the same picture, which refer to nothing, what went wrong."""
import hashlib

import torch

from utils import distributed


class SampleNotes:
    """Collects notes on the samples of an evaluation.

    Attributes:
        pictures: by row, a digest of the visible image as the networks see it.
        no_target: rows whose mask holds no object.
        cut: rows whose sentence was too long and was cut.
        not_finite: rows for which the model's output holds NaN or infinity.

    Args:
        end_id: token id of [SEP], which a cut sentence lacks.
    """

    def __init__(self, end_id: int):
        self.end_id = end_id
        self.pictures: dict[int, str] = {}
        self.no_target: set[int] = set()
        self.cut: set[int] = set()
        self.not_finite: set[int] = set()

    def add(self, batch: dict, output) -> None:
        """Take a batch of `data.collate`, loaded with its originals, and the model's output for it."""
        rows = batch["row"].tolist()
        # Of pixels, since names do not always tell pictures apart. At the networks' size, since that is at hand.
        self.pictures |= {row: hashlib.sha1(image.numpy(), usedforsecurity=False).hexdigest()[:16]
                          for row, image in zip(rows, batch["vis"], strict=True)}
        self.no_target |= {row for row, mask in zip(rows, batch["mask"], strict=True) if not mask.any()}
        cut = (batch["attention_mask"][:, -1] == 1) & (batch["input_ids"][:, -1] != self.end_id)
        self.cut |= set(batch["row"][cut].tolist())
        finite = torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in (output.fused, output.logits)]).all(0)
        self.not_finite |= set(batch["row"][~finite.cpu()].tolist())

    def gather(self) -> None:
        """Join what all processes have collected."""
        for pictures, no_target, cut, not_finite in distributed.gather(
                (self.pictures, self.no_target, self.cut, self.not_finite)):
            self.pictures |= pictures
            self.no_target |= no_target
            self.cut |= cut
            self.not_finite |= not_finite

    def tell_apart(self, names: list[str], rows: list[int]) -> tuple[list[str], bool]:
        """What tells the pictures of samples apart.

        Args:
            names: `image_name` of each row of the data set.
            rows: those that were evaluated.
        Returns:
            For each of `rows` its name, if equal names mean equal pictures and different names different ones; else
            the digest of its picture. And whether it is the name.
        """
        names, digests = [names[row] for row in rows], [self.pictures[row] for row in rows]
        by_name = len(set(zip(names, digests, strict=True))) == len(set(names)) == len(set(digests))
        return (names if by_name else digests), by_name
