"""3×3 convolution with a quarter of the multiplications, for a CPU: Winograd's F(4×4, 3×3) (Lavin and Gray, CVPR 2016).

A tile of 6×6 pixels is transformed to 36 numbers, and the kernel likewise. Their products, transformed back, are the
convolution of the tile's 4×4 centre: 36 multiplications instead of 144. Over the channels these are matrix products.
"""
import torch
from torch import Tensor, nn

# The transforms Bᵀ of the tile, G of the kernel and Aᵀ of the result, from section 4.3 of the paper.
PATCH = torch.tensor([[4.0, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                      [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])
KERNEL = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
BACK = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class WinogradConv(nn.Module):
    """Computes what a 3×3 `Conv2d` with padding 1 does, for inference in float32.

    Rounding errors are about three times those of a direct convolution, below 1e-5 of the largest output. The
    transformed kernel takes four times the memory.

    Args:
        conv: a 3×3 convolution with stride 1, padding 1 and one group.
    """

    patch: Tensor  # (36, 36), both directions in one
    back: Tensor   # (16, 36)

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        weight, transform = conv.weight.detach().double(), KERNEL.double().to(conv.weight.device)
        weight = torch.einsum("ai,bj,kcij->abck", transform, transform, weight).flatten(0, 1).to(conv.weight.dtype)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)  # (36, in, out)
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("patch", torch.kron(PATCH, PATCH))
        self.register_buffer("back", torch.kron(BACK, BACK))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), stored as NHWC."""
        batch, channels, height, width = x.shape
        down, across = -(-height // 4), -(-width // 4)  # numbers of tiles
        padded = x.new_empty(batch, 4 * down + 2, 4 * across + 2, channels)
        padded[:, 1:height + 1, 1:width + 1] = x.permute(0, 2, 3, 1)
        for border in (padded[:, :1], padded[:, height + 1:], padded[:, :, :1], padded[:, :, width + 1:]):
            border.zero_()
        image, row, column, _ = padded.stride()
        patches = padded.as_strided((batch, down, across, 6, 6, channels), (image, 4 * row, 4 * column, row, column, 1))
        out = x.new_empty(batch, down, 4, across, 4, self.weight.shape[2])
        # Process about as many tiles at a time as there are channels: more do not fit the cache, and with fewer the
        # weights are read more often.
        rows = max(1, channels // across)
        images = max(1, rows // down)
        for number in range(0, batch, images):
            for start in range(0, down, rows):
                here = slice(number, number + images), slice(start, start + rows)
                tiles = patches[here].reshape(-1, 36, channels)
                # One product for each tile is twice as fast as a single product over all tiles.
                patch, back = (transform.expand(len(tiles), -1, -1) for transform in (self.patch, self.back))
                tiles = patch @ tiles  # a statement of its own, so that the tiles before it are freed
                tiles = tiles.transpose(0, 1) @ self.weight  # (36, tiles, out)
                tiles = torch.baddbmm(self.bias, back, tiles.transpose(0, 1))  # (tiles, 16, out)
                out[here] = tiles.view(*out[here].shape[:2], across, 4, 4, -1).transpose(2, 3)
        return out.view(batch, 4 * down, 4 * across, -1)[:, :height, :width].permute(0, 3, 1, 2)
