"""3×3 convolution with a quarter of the multiplications: F(4×4, 3×3) of Lavin and Gray (CVPR 2016), for a CPU.

A patch of 6×6 pixels becomes 36 numbers, so that the convolution of its 4×4 middle is a product of each with the
kernel, transformed likewise: 36 products for what takes 144. Over the channels, the 36 are products of matrices.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The transforms Bᵀ, G and Aᵀ of the paper's section 4.3: of the patch, of the kernel, and back.
PATCH = torch.tensor([[4.0, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                      [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])
KERNEL = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
BACK = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])

TILES = 300  # patches at a time: their transforms fit a processor's cache, and matrix products are still efficient


class WinogradConv(nn.Module):
    """What a `Conv2d` of 3×3 with padding 1 computes, for inference in float32.

    Rounding errors are some three times those of a direct convolution, 1e-5 of the largest output; the kernel takes
    four times the memory.

    Args:
        conv: a 3×3 convolution with stride 1, padding 1 and one group.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        weight, transform = conv.weight.detach().double(), KERNEL.double().to(conv.weight.device)
        weight = torch.einsum("ai,bj,kcij->abck", transform, transform, weight).flatten(0, 1).to(conv.weight.dtype)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)  # (36, in, out)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.register_buffer("patch", torch.kron(PATCH, PATCH))  # (36, 36), both directions in one
        self.register_buffer("back", torch.kron(BACK, BACK))     # (16, 36)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), stored as NHWC."""
        batch, channels, height, width = x.shape
        down, across = -(-height // 4), -(-width // 4)  # tiles
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * across - width + 1, 1, 4 * down - height + 1))
        image, row, column, _ = x.stride()
        patches = x.as_strided((6, 6, batch, down, across, channels), (row, column, image, 4 * row, 4 * column, 1))
        out = x.new_empty(batch, down, 4, across, 4, self.weight.shape[2])
        step = max(1, TILES // across)
        for number in range(batch):
            for start in range(0, down, step):
                some = patches[:, :, number, start:start + step]
                products = (self.patch @ some.reshape(36, -1)).view(36, -1, channels) @ self.weight
                tiles = self.back @ products.view(36, -1)
                tiles = tiles.view(4, 4, -1, across, out.shape[-1]).permute(2, 0, 3, 1, 4)
                if self.bias is not None:
                    tiles += self.bias
                out[number, start:start + step] = tiles
        return out.view(batch, 4 * down, 4 * across, -1)[:, :height, :width].permute(0, 3, 1, 2)
