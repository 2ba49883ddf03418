"""PWAM, the pixel–word attention of LAVT (Yang et al., CVPR 2022), which lets every Swin stage see the sentence."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import recompute_cheap


class Projection(nn.Conv1d):
    """A 1×1 convolution, by which name the checkpoint format knows it, of maps whose channels come last."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) to (B, N, out)."""
        return F.linear(x, self.weight[..., 0], self.bias)


class PixelNorm(nn.Module):
    """InstanceNorm1d of maps whose channels come last: each channel of (B, N, C) over its N pixels; eps 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt()


class SpatialImageLanguageAttention(nn.Module):
    """Pixels are the queries, words the keys and values.

    Args:
        dim: channels of the feature map, and of queries, keys and values.
        text_dim: hidden size of the text encoder.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        # Sequentials of one layer, because the names of the tensors are part of the checkpoint format.
        self.f_query = nn.Sequential(Projection(dim, dim), PixelNorm())
        self.f_key = nn.Sequential(Projection(text_dim, dim))
        self.f_value = nn.Sequential(Projection(text_dim, dim))
        self.W = nn.Sequential(Projection(dim, dim), PixelNorm())

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, dim), text (B, T, text_dim), mask (B, T) to (B, N, dim) float32, under autocast, too.

        InstanceNorm takes the mean away from maps that differ little between pixels. What is left of them is the
        sentence's say in the matter, and less than 16-bit floats can hold.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._attend(x.float(), text.float(), mask.float())

    def _attend(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        words = mask[:, :, None]
        query, key, value = (projected.unflatten(2, (self.num_heads, -1)) for projected in (  # (B, N or T, heads, d)
            self.f_query(x), self.f_key(text) * words, self.f_value(text) * words))
        # dim^-0.5 whatever the number of heads; a padded word is far down, but not at −inf.
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * self.dim ** -0.5 + (1e4 * mask - 1e4)[:, None, None]
        weights = scores.softmax(3).transpose(1, 2).flatten(2)  # (B, N, heads·T)
        # What W is to project are sums of values over words: it is given the values, of which there are fewer.
        project, normalise = self.W
        value = torch.einsum("bthd,ohd->bhto", value, project.weight.flatten(1).unflatten(1, (self.num_heads, -1)))
        return normalise(torch.baddbmm(project.bias, weights, value.flatten(1, 2)))


class PWAM(nn.Module):
    """Pixel–word attention module: the residual r that carries the sentence into a feature map.

    Args:
        dim, text_dim, num_heads: as in SpatialImageLanguageAttention.
        dropout: rate behind both projections.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.vis_project = nn.Sequential(Projection(dim, dim), nn.GELU(), nn.Dropout(dropout))
        self.image_lang_att = SpatialImageLanguageAttention(dim, text_dim, num_heads)
        self.project_mm = nn.Sequential(Projection(dim, dim), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, dim), N ≥ 2, text (B, T, text_dim), mask (B, T) in x's dtype to r (B, N, dim)."""
        return self.project_mm(self.vis_project(x) * recompute_cheap(self.image_lang_att, x, text, mask))
