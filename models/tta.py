"""Test-time augmentation: the average of a pass with another that sees the mirrored images.

Mirroring moves what is on the left to the right, so the words `left` and `right` are exchanged in the mirrored pass.
Tokens are exchanged whatever they mean, also where `right` means correct. Other words for a side (west, clockwise) are
left as they are. `evaluation.inference.Inference` makes the two passes.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .ris_fusion import Output


def average(plain: Output, mirrored: Output) -> Output:
    """The average of two passes, of which the second saw mirrored images.

    Args:
        plain, mirrored: outputs of a `RISFusion` with a segmenter.
    Returns:
        The mean of the fused images, and the logarithm of the mean class probabilities as logits.
    """
    assert plain.logits is not None and mirrored.logits is not None
    fused = average_fused(plain.fused, mirrored.fused)
    plain_log, mirrored_log = (F.log_softmax(logits.float(), 1) for logits in (plain.logits, mirrored.logits.flip(-1)))
    return Output(fused, torch.logaddexp(plain_log, mirrored_log) - torch.log(torch.tensor(2.0)))


def average_fused(plain: Tensor, mirrored: Tensor) -> Tensor:
    """The fused images alone, (B, 3, H, W) each, averaged likewise; float32."""
    return (plain.float() + mirrored.float().flip(-1)) / 2


def left_right_ids(tokenize: Callable[[list[str]], tuple[Tensor, Tensor]]) -> tuple[int, int] | None:
    """The token ids of the words `left` and `right`.

    Args:
        tokenize: a `bert.Tokenizer`.
    Returns:
        None when the vocabulary does not have both as whole words.
    """
    # WordPiece makes [UNK] of a word with more than 100 characters, whatever the vocabulary.
    ids, attention_mask = tokenize(["left", "right", "x" * 200])
    left, right, unknown = ids[:, 1].tolist()
    whole = attention_mask.sum(1).tolist()[:2] == [3, 3]  # [CLS], the word, [SEP]
    return (left, right) if whole and len({left, right, unknown}) == 3 else None


def exchange(input_ids: Tensor, pair: tuple[int, int] | None) -> Tensor:
    """The ids (B, T) with the two of `pair` exchanged; None exchanges nothing."""
    if pair is None:
        return input_ids
    one, other = pair
    return torch.where(input_ids == one, other, torch.where(input_ids == other, one, input_ids))
