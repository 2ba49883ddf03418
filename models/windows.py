"""Attention windows (Liu et al., ICCV 2021): which pixel of a map lies where in them, worked out once for each size.

Rolled and padded maps are never made: what the heads want to know of the pixels goes straight to its place.
"""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """The W windows of N places each into which a map of H·W pixels is cut, for attention with h heads.

    `IntoWindows` and `OutOfWindows` move rows of d numbers, what one head knows of one pixel, by these indices (int64).
    """

    into: Tensor     # (3, W·h·N): from (H·W, 3, h) rows to W windows, h heads, N places; padding takes from pixel H·W
    origins: Tensor  # (3·W·h·N,): where each of the (H·W, 3, h) rows went, and behind them those of padding
    out: Tensor      # (H·W·h,): from the rows of attention's output to H·W pixels, h heads
    returns: Tensor  # (W·h·N,): the way back; H·W·h for padding
    padding: int     # places without a pixel
    heads: int       # that attention is to be given: h, or W·h where each window has a mask of its own
    mask: Tensor | None  # (W, 1, N, N) float32: 0 between neighbours, −100 between regions; None without a shift


@torch.compiler.assume_constant_result  # a compiler is to take the tensors as they are
def find_windows(height: int, width: int, window: int, shift: int, heads: int, device: torch.device) -> Windows:
    """Pad a map right and bottom to multiples of the window, roll it by the shift, and cut it into windows.

    Args:
        height, width: of the map.
        window: side of the windows, of which N is the square.
        shift: 0, or `window // 2`; then there is a mask, since a window may hold parts that are no neighbours.
        heads: h.
        device: for the tensors.
    """
    return _find_windows(height, width, window, shift, heads, device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _find_windows(height: int, width: int, window: int, shift: int, heads: int, device: torch.device) -> Windows:
    down, right = -height % window, -width % window

    def cut(padded: Tensor) -> Tensor:
        """(padded height, padded width) to (W, N)."""
        rows = padded.roll((-shift, -shift), dims=(0, 1)).unflatten(0, (-1, window)).unflatten(2, (-1, window))
        return rows.transpose(1, 2).flatten(2).flatten(0, 1)

    def region(length: int) -> Tensor:
        """0, 1, 2 along one axis of the map: in windows that are whole, in the last one, rolled around into it."""
        place = torch.arange(length)  # on the rolled map
        return ((place >= length - window).int() + (place >= length - window // 2).int()).roll(shift)

    pixels = height * width
    pixel = cut(F.pad(torch.arange(pixels).view(1, height, width), (0, right, 0, down), value=pixels)[0])
    count, area = pixel.shape
    padding = count * area - pixels
    head = torch.arange(heads)[:, None]
    into = torch.arange(3)[:, None, None, None] * heads + pixel[:, None] * 3 * heads + head  # (3, W, h, N)
    returns = (pixel[:, None] * heads + head).clamp(max=pixels * heads)  # (W, h, N); in the order of the output:
    returns = returns.movedim(2, 0 if shift else 1).flatten()
    mask = None
    if shift:
        regions = cut(3 * region(height + down)[:, None] + region(width + right))
        mask = ((regions[:, None, :] != regions[:, :, None]).float() * -100)[:, None].to(device)
    return Windows(
        into.flatten(1).to(device), into.flatten().argsort(stable=True).to(device),
        returns.argsort(stable=True)[:pixels * heads].to(device), returns.to(device),
        padding, count * heads if shift else heads, mask)


class IntoWindows(torch.autograd.Function):
    """Queries, keys and values of pixels to those of windows.

    (B, H·W, 3·h·d), or (B, H·W + 1, 3·h·d) with what padding projects to in the last row, to three of (B, W·h·N, d).
    Forward and backward pass move every row once; PyTorch's own gradient of an index would add them up.
    """

    @staticmethod
    def forward(qkv: Tensor, windows: Windows, width: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = qkv.view(len(qkv), -1, width)
        query, key, value = (rows.index_select(1, index) for index in windows.into)
        return query, key, value

    @staticmethod
    def setup_context(ctx, inputs, _output) -> None:
        qkv, ctx.windows, _ = inputs
        ctx.shape = qkv.shape

    @staticmethod
    def backward(ctx, *grads: Tensor):
        rows = torch.stack(grads, 1).flatten(1, 2).index_select(1, ctx.windows.origins)
        if ctx.windows.padding:
            _, pixels, width = ctx.shape
            rows, of_padding = rows.tensor_split([(pixels - 1) * width // rows.shape[-1]], dim=1)
            rows = torch.cat([rows, of_padding.unflatten(1, (-1, ctx.windows.padding)).sum(2)], dim=1)
        return rows.view(ctx.shape), None, None


class OutOfWindows(torch.autograd.Function):
    """Attention's output, its places before its heads, to pixels: (B, W·h·N, d) rows to (B, H·W, h·d)."""

    @staticmethod
    def forward(rows: Tensor, windows: Windows, width: int) -> Tensor:
        return rows.index_select(1, windows.out).view(len(rows), -1, width)

    @staticmethod
    def setup_context(ctx, inputs, _output) -> None:
        rows, ctx.windows, _ = inputs
        ctx.row = rows.shape[-1]

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows = grad.reshape(len(grad), -1, ctx.row)
        if ctx.windows.padding:
            rows = F.pad(rows, (0, 0, 0, 1))  # nothing comes back from padding
        return rows.index_select(1, ctx.windows.returns), None, None
