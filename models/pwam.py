"""PWAM, the pixel–word attention module of LAVT (Yang et al., CVPR 2022), through which a Swin stage reads the text."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialImageLanguageAttention(nn.Module):
    """Attention with the pixels as queries and the words as keys and values.

    Args:
        dim: channels of the feature map, and of queries, keys and values.
        text_dim: hidden size of the text encoder.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int):
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        # Sequentials even of one layer, because the checkpoint format has their names.
        self.f_query = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.InstanceNorm1d(dim))
        self.f_key = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.f_value = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.InstanceNorm1d(dim))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """For each pixel the text that it attends to.

        Args:
            x: (B, dim, N), N ≥ 2 pixels.
            text: (B, text_dim, T).
            mask: (B, T), 1 on real tokens and 0 on padding.
        Returns:
            (B, dim, N) float32.
        """
        # In float32 under autocast: InstanceNorm subtracts the mean over the pixels, and bfloat16 cannot represent the
        # small differences that remain.
        with torch.autocast(x.device.type, enabled=False):
            return self.attend(x.float(), text.float(), mask.float())

    def attend(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`forward` in the precision of its inputs."""
        query = self.f_query(x)                      # (B, dim, N)
        key = self.f_key(text) * mask[:, None]       # (B, dim, T)
        value = self.f_value(text) * mask[:, None]
        heads = (self.num_heads, -1)
        query, key, value = (tensor.unflatten(1, heads).transpose(2, 3) for tensor in (query, key, value))
        # LAVT scales by dim, not by the width of a head, and gives padding a score of −1e4 instead of −inf.
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=(1e4 * mask - 1e4)[:, None, None], scale=self.dim ** -0.5)
        return self.W(attended.transpose(2, 3).flatten(1, 2))


class PWAM(nn.Module):
    """Pixel–word attention module: the residual r that brings the text into a feature map.

    Args:
        dim, text_dim, num_heads: as in SpatialImageLanguageAttention.
        dropout: rate after both projections.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.vis_project = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.GELU(), nn.Dropout(dropout))
        self.image_lang_att = SpatialImageLanguageAttention(dim, text_dim, num_heads)
        self.project_mm = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, dim), N ≥ 2, text (B, T, text_dim), mask (B, T) in x's dtype to r (B, N, dim)."""
        x, text = x.transpose(1, 2), text.transpose(1, 2)
        language = self.image_lang_att(x, text, mask)
        return self.project_mm(self.vis_project(x) * language).transpose(1, 2)
