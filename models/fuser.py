"""The fusion network of RIS-FUSION (arXiv 2509.12710): a UNet on luma with two encoders and text-guided mixing."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.color import IMAGENET_MEAN, IMAGENET_STD, luma

TEXT_WIDTH = 256
HEADS = 4

Levels = tuple[Tensor, Tensor]  # features at two of the levels k = 0 … 3, the finer one first


class EncodedPair(NamedTuple):
    """The features of two images, which depend on no sentence: (B, c·2^k, ⌊H/2^k⌋, ⌊W/2^k⌋) at level k."""

    average: Levels   # levels 0 and 1, averaged over the two modalities
    visible: Levels   # levels 2 and 3 of the visible luma
    infrared: Levels  # likewise of the infrared luma
    cb: Tensor  # (B, 1, H, W), the visible image's chroma, without its offset of 0.5
    cr: Tensor  # likewise


class DoubleConv(nn.Module):
    """(3×3 conv, BatchNorm, ReLU) twice; keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return self.block(x)


class Down(nn.Module):
    """Halve height and width (rounding down), then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, ⌊H/2⌋, ⌊W/2⌋)."""
        return self.conv(self.pool(x))


class Up(nn.Module):
    """Double height and width, pad or crop to the skip's size around the centre, concat and DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, in, h, w) and skip (B, in/2, H, W) to (B, out, H, W)."""
        x = self.up(x)
        dy, dx = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))  # negative padding crops
        return self.conv(torch.cat([skip, x], dim=1))


class TextProjection(nn.Module):
    """BERT's hidden states to the fuser's text tokens."""

    def __init__(self, text_dim: int):
        super().__init__()
        self.proj = nn.Linear(text_dim, TEXT_WIDTH)
        self.norm = nn.LayerNorm(TEXT_WIDTH)

    def forward(self, text: Tensor) -> Tensor:
        """(B, T, text_dim) to (B, T, 256)."""
        return self.norm(self.proj(text))


class PixelWordAttention(nn.Module):
    """Attention with the pixels as queries and the words as keys and values; padding gets no weight."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.q_proj = nn.Conv2d(in_channels, TEXT_WIDTH, 1)
        self.k_proj = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.v_proj = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.out_proj = nn.Conv2d(TEXT_WIDTH, TEXT_WIDTH, 1)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x (B, in, h, w), tokens (B, T, 256), mask (B, T) with 1 on real tokens, to (B, 256, h, w)."""
        query = self.q_proj(x).flatten(2).transpose(1, 2)  # (B, h·w, 256)
        key, value = self.k_proj(tokens), self.v_proj(tokens)
        query, key, value = (tensor.unflatten(2, (HEADS, -1)).transpose(1, 2) for tensor in (query, key, value))
        real = mask.bool()[:, None, None]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=real)  # (B, heads, h·w, 64)
        return self.out_proj(context.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[-2:]))


class LangGatedFusion(nn.Module):
    """Mix the features of the two modalities under the guidance of the sentence.

    For each pixel the sentence gives a gate α (1 takes the infrared features, 0 the visible ones), a scale γ and an
    offset β, the same for all channels.

    Args:
        channels: C of each modality's features.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.pwam = PixelWordAttention(2 * channels)  # the checkpoint's name; not LAVT's PWAM of pwam.py
        self.fuse_gate = nn.Sequential(nn.Conv2d(TEXT_WIDTH, 128, 1), nn.ReLU(inplace=True), nn.Conv2d(128, 1, 1))
        self.film = nn.Sequential(nn.Conv2d(TEXT_WIDTH, 128, 1), nn.ReLU(inplace=True), nn.Conv2d(128, 2, 1))

    def forward(self, visible: Tensor, infrared: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """visible, infrared (B, C, h, w), tokens (B, T, 256), mask (B, T) to (B, C, h, w)."""
        context = self.pwam(torch.cat([visible, infrared], dim=1), tokens, mask)
        alpha = self.fuse_gate(context).sigmoid()
        gamma, beta = self.film(context).chunk(2, dim=1)
        return (1 + 0.1 * gamma) * ((1 - alpha) * visible + alpha * infrared) + beta


class FusionNet(nn.Module):
    """Visible luma, infrared luma and the sentence to the luma of the fused image."""

    def __init__(self, base_channels: int, text_dim: int):
        super().__init__()
        c = base_channels
        self.y_inc, self.i_inc = DoubleConv(1, c), DoubleConv(1, c)
        self.y_d1, self.i_d1 = Down(c, 2 * c), Down(c, 2 * c)
        self.y_d2, self.i_d2 = Down(2 * c, 4 * c), Down(2 * c, 4 * c)
        self.y_d3, self.i_d3 = Down(4 * c, 8 * c), Down(4 * c, 8 * c)
        self.txt = TextProjection(text_dim)
        self.lang_l3 = LangGatedFusion(4 * c)
        self.lang_l4 = LangGatedFusion(8 * c)
        self.u3 = Up(8 * c, 4 * c)
        self.u2 = Up(4 * c, 2 * c)
        self.u1 = Up(2 * c, c)
        self.outc = nn.Conv2d(c, 1, 1)

    def encode(self, visible: Tensor, infrared: Tensor) -> tuple[Levels, Levels, Levels]:
        """visible, infrared (B, 1, H, W) in [0, 1] to the first three fields of `EncodedPair`."""
        y1, i1 = self.y_inc(visible), self.i_inc(infrared)
        y2, i2 = self.y_d1(y1), self.i_d1(i1)
        y3, i3 = self.y_d2(y2), self.i_d2(i2)
        y4, i4 = self.y_d3(y3), self.i_d3(i3)
        return ((y1 + i1) / 2, (y2 + i2) / 2), (y3, y4), (i3, i4)

    def decode(self, average: Levels, visible: Levels, infrared: Levels, text: Tensor, mask: Tensor) -> Tensor:
        """The levels of `encode`, text (B, T, text_dim) and mask (B, T) to the fused luma (B, 1, H, W) in (0, 1)."""
        (level1, level2), (y3, y4), (i3, i4) = average, visible, infrared
        tokens = self.txt(text)
        level3 = self.lang_l3(y3, i3, tokens, mask)
        x = self.lang_l4(y4, i4, tokens, mask)
        x = self.u3(x, level3)
        x = self.u2(x, level2)
        x = self.u1(x, level1)
        # In float32 under autocast, because bfloat16 cannot represent 256 grey levels.
        with torch.autocast(x.device.type, enabled=False):
            return self.outc(x.float()).sigmoid()


class UNetFuser(nn.Module):
    """Language-guided fusion of a visible and an infrared image (RIS-FUSION, arXiv 2509.12710).

    Only luma is fused; the colour of the result is that of the visible image.

    Args:
        base_channels: width c of the first level; the four levels have c, 2c, 4c and 8c channels.
        text_dim: hidden size of the text encoder.
    """

    mean_vis: Tensor  # (1, 3, 1, 1), as the other three
    std_vis: Tensor
    mean_ir: Tensor
    std_ir: Tensor

    def __init__(self, base_channels: int = 32, text_dim: int = 768):
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            for modality in ("vis", "ir"):
                self.register_buffer(f"{name}_{modality}", torch.tensor(values).view(1, 3, 1, 1))
        self.net = FusionNet(base_channels, text_dim)

    def forward(self, vis: Tensor, ir: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Fuse a batch of image pairs.

        Args:
            vis, ir: (B, 3, H, W) float, standardised; H and W at least 8.
            text: (B, T, text_dim) last hidden states of the text encoder.
            mask: (B, T), 1 on real tokens and 0 on padding.
        Returns:
            (B, 3, H, W) fused image, standardised with the visible statistics.
        """
        return self.decode(self.encode(vis, ir), text, mask)

    def encode(self, vis: Tensor, ir: Tensor) -> EncodedPair:
        """The part of `forward` that does not depend on the sentence."""
        red, green, blue = (vis * self.std_vis + self.mean_vis).clamp(0, 1).split(1, dim=1)
        y = 0.299 * red + 0.587 * green + 0.114 * blue
        # Chroma without its offset of 0.5, which the recombination would subtract again.
        cb = -0.168736 * red - 0.331264 * green + 0.5 * blue
        cr = 0.5 * red - 0.418688 * green - 0.081312 * blue
        infrared = luma((ir * self.std_ir + self.mean_ir).clamp(0, 1))
        return EncodedPair(*self.net.encode(y, infrared), cb, cr)

    def decode(self, pair: EncodedPair, text: Tensor, mask: Tensor) -> Tensor:
        """The rest of `forward`, for one sentence about each encoded pair."""
        cb, cr = pair.cb, pair.cr
        y = self.net.decode(pair.average, pair.visible, pair.infrared, text, mask)
        fused = torch.cat([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], dim=1)
        return (fused.clamp(0, 1) - self.mean_vis) / self.std_vis
