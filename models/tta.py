"""Test-time augmentation: average with the mirrored images."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ris_fusion import Output


def forward_tta(model: nn.Module, vis: Tensor, ir: Tensor, input_ids: Tensor, attention_mask: Tensor,
                left_right: tuple[int, int] | None = None) -> Output:
    """Fuse and segment twice, as given and mirrored, and average.

    What is on the left lies on the right in the mirror, so the two words trade places in the mirrored pass: the car on
    the left is asked for as the car on the right. That is done to tokens, whatever they mean: `right` for `correct`
    is exchanged too. Other hints at the side (west, clockwise, lettering) are not understood.

    Args:
        model: a `RISFusion`, or anything that is called like one.
        vis, ir, input_ids, attention_mask: as for `RISFusion`.
        left_right: token ids of `left` and `right`, from `left_right_ids`; None leaves the sentences as they are, for
            data that never name a side.
    Returns:
        The mean of the fused images, and the logarithm of the mean class probabilities as logits.
    """
    plain = model(vis, ir, input_ids, attention_mask)
    mirrored = model(vis.flip(-1), ir.flip(-1), exchange(input_ids, left_right), attention_mask)
    return average(plain, mirrored)


def average(plain: Output, mirrored: Output) -> Output:
    """Two passes in one: the second's images and maps are turned back first. Shapes and values as in `forward_tta`."""
    fused = (plain.fused.float() + mirrored.fused.float().flip(-1)) / 2
    plain_log, mirrored_log = (F.log_softmax(logits.float(), 1) for logits in (plain.logits, mirrored.logits.flip(-1)))
    return Output(fused, torch.logaddexp(plain_log, mirrored_log) - torch.log(torch.tensor(2.0)))


def left_right_ids(tokenize) -> tuple[int, int] | None:
    """The token ids of the words `left` and `right`.

    Args:
        tokenize: a `bert.Tokenizer`.
    Returns:
        None when the vocabulary does not have both as whole words.
    """
    ids, attention_mask = tokenize(["left", "right", "x" * 200])  # WordPiece gives up words of over 100 characters,
    left, right, unknown = ids[:, 1].tolist()                     # so that the last is [UNK] in any vocabulary
    whole = attention_mask.sum(1).tolist()[:2] == [3, 3]  # [CLS], the word, [SEP]
    return (left, right) if whole and len({left, right, unknown}) == 3 else None


def exchange(input_ids: Tensor, pair: tuple[int, int] | None) -> Tensor:
    """The ids with the two of `pair` in each other's place."""
    if pair is None:
        return input_ids
    one, other = pair
    return torch.where(input_ids == one, other, torch.where(input_ids == other, one, input_ids))
