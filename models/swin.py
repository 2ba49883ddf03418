"""LAVT's backbone: a Swin Transformer (Liu et al., ICCV 2021) whose stages are joined with the sentence by PWAM.

MLP, patch embedding and merging are timm's, and so are attention's parameters. The block is written here: timm's rolls
the map before it pads it and shrinks the window on small maps, and this one pads first and never shrinks. So is what
attention computes: timm keeps from PyTorch's fused kernels here.
"""
import functools

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models.swin_transformer import PatchMerging, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from .architecture import SwinSize
from .pwam import PWAM
from .recompute import recompute, recompute_cheap

DROP_PATH_RATE = 0.3


class SwinBlock(nn.Module):
    """(Shifted-)window attention and MLP, each with a residual."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size=window)
        index = self.attn.relative_position_index
        del self.attn.relative_position_index
        self.attn.register_buffer("relative_position_index", index)  # part of the checkpoint format, not of timm's
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.masks: dict | None = None  # for inference: by shift mask, of which there is one for each size

    def forward(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        """x (B, H, W, dim) and the stage's `shift_mask(...)` to (B, H, W, dim)."""
        x = x + self.drop_path(self._attend(self.norm1(x), shift_mask))
        hidden = self.mlp.fc1(self.norm2(x))
        return x + self.drop_path(recompute_cheap(self._rest_of_mlp, hidden))

    def _rest_of_mlp(self, hidden: Tensor) -> Tensor:
        return self.mlp.fc2(self.mlp.act(hidden))

    def _attend(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        window = self.window
        if height % window or width % window:  # padding by nothing would copy
            x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, (window, window)).view(-1, window * window, dim)
        windows = self._within_windows(windows, shift_mask if self.shift else None)
        x = window_reverse(windows.view(-1, window, window, dim), (window, window), *padded)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def _within_windows(self, windows: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Attention within windows (B·nW, N, dim)."""
        attn = self.attn
        query, key, value = attn.qkv(windows).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = recompute_cheap(self._scaled_dot_product, query, key, value, shift_mask)
        return attn.proj(attended.transpose(1, 2).flatten(2))

    def _scaled_dot_product(self, query: Tensor, key: Tensor, value: Tensor, shift_mask: Tensor | None) -> Tensor:
        mask = self._additive_mask(shift_mask, len(query))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def _additive_mask(self, shift_mask: Tensor | None, windows: int) -> Tensor:
        """Position bias and shift mask in one, (1 or B·nW, heads, N, N)."""
        if self.masks is not None and shift_mask in self.masks:
            mask = self.masks[shift_mask]
        else:
            index = self.attn.relative_position_index
            mask = self.attn.relative_position_bias_table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)
            mask = mask[None] if shift_mask is None else mask + shift_mask[:, None]
            if self.masks is not None:
                self.masks[shift_mask] = mask
        return mask if len(mask) in (1, windows) else mask.repeat(windows // len(mask), 1, 1, 1)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """What keeps the parts of a window rolled by half of it apart that are no neighbours in the image; made once.

    Args:
        height, width: of the map, which is padded to multiples of `window` first.
    Returns:
        (windows, window², window²) float32: 0 within a region, −100 between regions.
    """
    def regions(length: int) -> Tensor:
        """0, 1, 2 along one axis of the rolled map: untouched windows, the last window, what was rolled around."""
        position = torch.arange(length + -length % window, device=device)
        return (position >= len(position) - window).int() + (position >= len(position) - window // 2).int()

    region = 3 * regions(height)[:, None] + regions(width)[None, :]
    region = window_partition(region[None, :, :, None], (window, window)).view(-1, window * window)
    return (region[:, None, :] != region[:, :, None]).float() * -100


class Stage(nn.Module):
    """Swin blocks, then PWAM, the gate that lets its residual into the map, and patch merging."""

    def __init__(self, dim: int, depth: int, num_heads: int, window: int, drop_path: list[float],
                 text_dim: int, fusion_heads: int, fusion_drop: float, downsample: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window, shift=window // 2 if i % 2 else 0, drop_path=drop_path[i])
            for i in range(depth))
        self.fusion = PWAM(dim, text_dim, fusion_heads, fusion_drop)
        self.res_gate = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh())
        self.downsample = PatchMerging(dim) if downsample else None
        self.grad_checkpointing = False

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H, W, dim), text (B, text_dim, T), mask (B, T) to the residual r (B, H, W, dim) and the next x."""
        _, height, width, _ = x.shape
        x = x.float()  # under autocast, too, what the residuals are added to keeps float32
        between_regions = shift_mask(height, width, self.window, x.device)
        for block in self.blocks:
            x = recompute(block, x, between_regions) if self.grad_checkpointing else block(x, between_regions)
        words = (x.flatten(1, 2).transpose(1, 2), text, mask)
        residual = recompute(self.fusion, *words) if self.grad_checkpointing else self.fusion(*words)
        residual = residual.transpose(1, 2).unflatten(1, (height, width))
        x = x + self.res_gate(residual) * residual
        return residual, x if self.downsample is None else self.downsample(x)


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
        rates = torch.linspace(0, DROP_PATH_RATE, sum(size.depths)).tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(size.depths):
            dim = size.embed_dim * 2 ** i
            self.layers.append(Stage(
                dim, depth, size.num_heads[i], window, [rates.pop(0) for _ in range(depth)],
                text_dim, fusion_heads[i], fusion_drop, downsample=i < 3))
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        # Part of the checkpoint format, but nothing depends on the map behind the last residual.
        self.layers[3].res_gate.requires_grad_(False)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """Swin's own start: truncated normal for Linear layers (timm has done the bias tables), zero biases."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four feature maps, finest first.

        Args:
            image: (B, 3, H, W) standardised; one of H and W above 32.
            text: (B, T, text_dim) last hidden states of the text encoder.
            mask: (B, T), 1 on real tokens and 0 on padding.
        Returns:
            (B, C·2^i, ⌈H/4·2^-i⌉, ⌈W/4·2^-i⌉) for i = 0 … 3: LayerNorm of each stage's residual r, not of its map x.
        Raises:
            ValueError: the last stage would be a single position, over which InstanceNorm has nothing to normalise.
        """
        if max(image.shape[-2:]) <= 32:
            raise ValueError(f"an image of {image.shape[-2]}×{image.shape[-1]} px is too small: at 32 px and below the "
                             "last stage is a single position, on which InstanceNorm cannot work")
        text = text.transpose(1, 2)
        mask = mask.to(text.dtype)
        x = self.patch_embed(image)
        features = []
        for i, stage in enumerate(self.layers):
            residual, x = stage(x, text, mask)
            features.append(getattr(self, f"norm{i}")(residual).permute(0, 3, 1, 2))
        return tuple(features)
