"""The baseline of the speed benchmarks: the same networks computed in the straightforward way.

Attention in three steps (scores, softmax, sum), its mask put together in every block, batch norm as layers of their
own, images stored as they come, all activations remembered, everything in float32.
"""
import contextlib
from unittest import mock

import torch
import torch.nn.functional as F

import models.recompute


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """`F.scaled_dot_product_attention`, step by step."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


@contextlib.contextmanager
def straightforwardly():
    """A context in which PyTorch's attention is `attention`, and nothing is computed twice."""
    with (mock.patch.object(F, "scaled_dot_product_attention", attention),
          mock.patch.object(models.recompute, "recompute", lambda function, *inputs: function(*inputs))):
        yield
