"""LAVT's backbone: a Swin Transformer (Liu et al., ICCV 2021) with PWAM after every stage.

Patch embedding, MLP, patch merging and attention's parameters are timm's. The block is written here, because LAVT's
differs from timm's: it pads a map before it rolls it, and never shrinks the window on a small map.
"""
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models import swin_transformer
from timm.models.swin_transformer import PatchMerging, window_partition, window_reverse
from torch import Tensor, nn

from utils.sizes import SMALLEST_SIDE, TOO_SMALL

from .architecture import SwinSize
from .pwam import PWAM

DROP_PATH_RATE = 0.3
BETWEEN_REGIONS = -100.0  # added to the attention scores of two positions that the roll has made neighbours


def in_autocast_type(x: Tensor) -> Tensor:
    """x in the type that autocast multiplies matrices in; x itself without autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class WindowAttention(swin_transformer.WindowAttention):
    """Multi-head self-attention within windows, with timm's parameters and PyTorch's fused attention.

    Args:
        dim: channels.
        num_heads: attention heads.
        window: side of the windows.
    """

    relative_position_index: Tensor  # (N, N) int64, N positions in a window

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__(dim, num_heads, window_size=window)
        index = self.relative_position_index
        del self.relative_position_index
        self.register_buffer("relative_position_index", index)  # saved in LAVT's checkpoints, unlike timm's

    def position_bias(self) -> Tensor:
        """The learned bias of each pair of positions in a window: (heads, N, N), N positions."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table.index_select(0, index.flatten())
        return bias.unflatten(0, index.shape).permute(2, 0, 1).contiguous()  # else a GPU's fused attention refuses it

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]  # timm takes an optional mask
        """Attend within each window.

        Args:
            x: (B·W, N, dim), the W windows of each of B maps.
            bias: (1, heads, N, N) or (W, heads, N, N), added to the scores.
        Returns:
            (B·W, N, dim).
        """
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        maps = x.shape[0] // bias.shape[0]  # not of len(), which torch.export takes for a constant
        bias = bias.to(query.dtype).expand(maps, *bias.shape).flatten(0, 1)  # the same for every map
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Attention within (shifted) windows, then an MLP, each with a residual.

    Args:
        dim: channels.
        num_heads: attention heads.
        window: side of the attention windows.
        shift: by how many positions the windows are moved right and down; 0 or `window // 2`.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same."""
        _, height, width, _ = x.shape
        shortcut, window = x, (self.window, self.window)
        x = in_autocast_type(self.norm1(x))  # before it is moved, because attention casts it anyway
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = window_partition(x, window).flatten(1, 2)
        x = self.attn(x, self.score_bias(padded_height, padded_width))
        x = window_reverse(x.unflatten(1, window), window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        x = x[:, :height, :width]
        x = shortcut + self.drop_path(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def score_bias(self, height: int, width: int) -> Tensor:
        """What is added to the scores: position bias, and with a shift −100 between different regions.

        Args:
            height, width: of the padded map.
        Returns:
            (1, heads, N, N); with a shift (W, heads, N, N) for W windows.
        """
        bias = self.attn.position_bias()[None]
        if self.shift == 0:
            return bias
        # Rolling brings the map's top and left edge into the last row and column of windows: 3×3 regions.
        rows, columns = (self._regions(length, bias.device) for length in (height, width))
        regions = (3 * rows[:, None] + columns)[None, :, :, None]
        regions = window_partition(regions, (self.window, self.window)).flatten(1)  # (W, N)
        different = regions[:, :, None] != regions[:, None, :]
        return bias + BETWEEN_REGIONS * different[:, None]

    def _regions(self, length: int, device: torch.device) -> Tensor:
        """(length,) along an axis of the rolled map: 0 in whole windows; in the last one 1, and 2 where it wraps."""
        position = torch.arange(length, device=device)
        return (position >= length - self.window).long() + (position >= length - self.shift).long()


class Stage(nn.Module):
    """Swin blocks, then PWAM, the gate through which its residual enters the map, and patch merging.

    Args:
        dim: channels.
        depth: number of blocks.
        num_heads: their attention heads.
        window: side of the attention windows.
        drop_path: each block's rate of stochastic depth.
        text_dim: hidden size of the text encoder.
        fusion_heads: PWAM's attention heads.
        fusion_drop: PWAM's dropout rate.
        downsample: whether patch merging follows.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, window: int, drop_path: list[float],
                 text_dim: int, fusion_heads: int, fusion_drop: float, downsample: bool):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window, shift=window // 2 if i % 2 else 0, drop_path=drop_path[i])
            for i in range(depth))
        self.fusion = PWAM(dim, text_dim, fusion_heads, fusion_drop)
        self.res_gate = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh())
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run one stage.

        Args:
            x: (B, H, W, dim).
            text: (B, T, text_dim) last hidden states of the text encoder.
            mask: (B, T), 1 on real tokens and 0 on padding.
        Returns:
            PWAM's residual r (B, H, W, dim), and the next stage's x (B, ⌈H/2⌉, ⌈W/2⌉, 2·dim), None after the last.
        """
        x = x.float()  # the sum of the residuals stays in float32 under autocast
        for block in self.blocks:
            x = block(x)
        residual = self.fusion(x.flatten(1, 2), text, mask).unflatten(1, x.shape[1:3])
        if self.downsample is None:  # nothing reads the map after the last residual
            return residual, None
        x = x + self.res_gate(residual) * residual
        return residual, self.downsample(x)


class LanguageSwin(nn.Module):
    """Swin Transformer with PWAM after every stage.

    Args:
        size: widths, depths and heads.
        window: side of the attention windows, 7 or 12.
        text_dim: hidden size of the text encoder.
        fusion_heads: heads of each stage's PWAM.
        fusion_drop: dropout rate in PWAM.
    """

    def __init__(self, size: SwinSize, window: int, text_dim: int,
                 fusion_heads: tuple[int, ...] = (1, 1, 1, 1), fusion_drop: float = 0.0):
        super().__init__()
        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=4, embed_dim=size.embed_dim, norm_layer=nn.LayerNorm,
            flatten=False, output_fmt="NHWC", dynamic_img_pad=True)
        rates = torch.linspace(0, DROP_PATH_RATE, sum(size.depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(size.depths):
            dim = size.embed_dim * 2 ** i
            self.layers.append(Stage(
                dim, depth, size.num_heads[i], window, [rates.pop(0) for _ in range(depth)],
                text_dim, fusion_heads[i], fusion_drop, downsample=i < 3))
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        self.layers[3].res_gate.requires_grad_(False)  # in the checkpoint format, but never used
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """Swin's initialisation of Linear layers: truncated normal weights, zero biases. timm fills the bias tables."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four feature maps, finest first.

        Args:
            image: (B, 3, H, W) standardised; H or W above 32.
            text: (B, T, text_dim) last hidden states of the text encoder.
            mask: (B, T), 1 on real tokens and 0 on padding.
        Returns:
            (B, C·2^i, ⌈H/4·2^-i⌉, ⌈W/4·2^-i⌉) for i = 0 … 3: LayerNorm of each stage's residual r, not of its map x.
        Raises:
            ValueError: the last stage would be a single position, over which InstanceNorm cannot normalise.
        """
        if max(image.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"an image of {image.shape[-2]}×{image.shape[-1]} px is too small: {TOO_SMALL}")
        mask = mask.to(text.dtype)
        x = self.patch_embed(image)
        features = []
        for i, stage in enumerate(self.layers):
            residual, x = stage(x, text, mask)
            features.append(getattr(self, f"norm{i}")(residual).permute(0, 3, 1, 2))
        return tuple(features)
