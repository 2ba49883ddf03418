"""The baseline of the speed benchmarks: the same networks computed in the straightforward way.

Maps are padded, rolled and cut into windows, and everything in the windows is projected, padding too. Attention goes in
three steps (scores, softmax, sum), its mask put together in every block. Between pixels and words, pixels are projected
before and after it, with their channels first. Batch norm is a layer of its own, images are stored as they come, all
activations remembered, everything in float32.
"""
import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse

import models.recompute
from models.fuser import HEADS, PixelWordAttention
from models.pwam import PixelNorm, Projection, SpatialImageLanguageAttention
from models.swin import SwinBlock


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """`F.scaled_dot_product_attention`, step by step."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


def attend(block: SwinBlock, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`SwinBlock._attend`: (B, H·W, dim) to the same."""
    attn, window, shift = block.attn, block.attn.window_size[0], block.shift
    x = F.pad(x.unflatten(1, (height, width)), (0, 0, 0, -width % window, 0, -height % window))
    padded = x.shape[1:3]
    x = x.roll((-shift, -shift), dims=(1, 2))
    windows = window_partition(x, (window, window)).flatten(1, 2)
    query, key, value = attn.qkv(windows).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    index = attn.relative_position_index
    mask = attn.relative_position_bias_table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)[None]
    if shift:
        mask = (mask + _shift_mask(*padded, window, x.device)[:, None]).repeat(len(x), 1, 1, 1)
    windows = attn.proj(attention(query, key, value, mask).transpose(1, 2).flatten(2))
    x = window_reverse(windows.unflatten(1, (window, window)), (window, window), *padded)
    x = x.roll((shift, shift), dims=(1, 2))
    return x[:, :height, :width].flatten(1, 2)


def _shift_mask(height: int, width: int, window: int, device: torch.device) -> torch.Tensor:
    """(windows, N, N): −100 between the 3×3 regions of a padded map, 0 within them."""
    regions = torch.zeros(1, height, width, 1, device=device)
    slices = (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
        regions[:, rows, columns] = number
    regions = window_partition(regions, (window, window)).flatten(1)
    return (regions[:, None, :] != regions[:, :, None]).float() * -100


def attend_to_words(layer: PixelWordAttention, x: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
                    ) -> torch.Tensor:
    """`PixelWordAttention.forward`: (B, in, h, w) to (B, 256, h, w)."""
    query = layer.q_proj(x).flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)
    key, value = (project(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2) for project in (layer.k_proj, layer.v_proj))
    context = attention(query, key, value, mask.bool()[:, None, None])
    return layer.out_proj(context.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[-2:]))


def attend_to_text(layer: SpatialImageLanguageAttention, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
                   ) -> torch.Tensor:
    """`SpatialImageLanguageAttention._attend`: (B, N, dim) to the same."""
    words = mask[:, :, None]
    query, key, value = (projected.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for projected in (
        layer.f_query(x), layer.f_key(text) * words, layer.f_value(text) * words))
    attended = attention(query, key, value, 1e4 * mask[:, None, None] - 1e4, scale=layer.dim ** -0.5)
    return layer.W(attended.transpose(1, 2).flatten(2))


@contextlib.contextmanager
def straightforwardly():
    """A context in which all this is so for the models, whose results it does not change."""
    with (mock.patch.object(F, "scaled_dot_product_attention", attention),
          mock.patch.object(SwinBlock, "_attend", attend),
          mock.patch.object(PixelWordAttention, "forward", attend_to_words),
          mock.patch.object(SpatialImageLanguageAttention, "_attend", attend_to_text),
          mock.patch.object(Projection, "forward", lambda layer, x: F.conv1d(
              x.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2)),
          mock.patch.object(PixelNorm, "forward", lambda _, x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2)),
          mock.patch.object(models.recompute, "recompute", lambda function, *inputs: function(*inputs))):
        yield
