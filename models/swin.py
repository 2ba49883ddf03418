"""LAVT's backbone: a Swin Transformer (Liu et al., ICCV 2021) whose stages are joined with the sentence by PWAM.

MLP, patch embedding and merging are timm's, and so are attention's parameters. The block is written here: timm's rolls
the map before it pads it and shrinks the window on small maps, and this one pads first and never shrinks. So is what
attention computes: timm keeps from PyTorch's fused kernels here.
"""
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models.swin_transformer import PatchMerging, WindowAttention
from torch import Tensor, nn

from .architecture import SwinSize
from .pwam import PWAM
from .recompute import call, recompute, recompute_cheap
from .windows import IntoWindows, OutOfWindows, find_windows

DROP_PATH_RATE = 0.3


class SwinBlock(nn.Module):
    """(Shifted-)window attention and MLP, each with a residual."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
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

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x (B, H·W, dim) to the same."""
        x = x + self.drop_path(self._attend(self.norm1(x), height, width))
        hidden = self.mlp.fc1(self.norm2(x))
        return x + self.drop_path(recompute_cheap(self._rest_of_mlp, hidden))

    def _rest_of_mlp(self, hidden: Tensor) -> Tensor:
        return self.mlp.fc2(self.mlp.act(hidden))

    def _attend(self, x: Tensor, height: int, width: int) -> Tensor:
        attn, (batch, _, dim) = self.attn, x.shape
        windows = find_windows(height, width, attn.window_size[0], self.shift, attn.num_heads, x.device)
        if windows.padding:
            x = F.pad(x, (0, 0, 0, 1))  # padding is all alike: one row of it is enough to project
        query, key, value = (rows.view(-1, windows.heads, attn.window_area, rows.shape[-1])
                             for rows in IntoWindows.apply(attn.qkv(x), windows, dim // attn.num_heads))
        attended = recompute_cheap(self._scaled_dot_product, query, key, value, windows.mask)
        rows = attended.transpose(1, 2).reshape(batch, -1, attended.shape[-1])
        return attn.proj(OutOfWindows.apply(rows, windows, dim))

    def _scaled_dot_product(self, query: Tensor, key: Tensor, value: Tensor, shift_mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self._additive_mask(shift_mask))

    def _additive_mask(self, shift_mask: Tensor | None) -> Tensor:
        """Position bias, and the shift mask if there is one: (1, heads, N, N) or (1, W·heads, N, N)."""
        keep = self.masks is not None and not torch.compiler.is_compiling()
        if keep and shift_mask in self.masks:
            return self.masks[shift_mask]
        index = self.attn.relative_position_index
        bias = self.attn.relative_position_bias_table.index_select(0, index.flatten()).t().unflatten(1, index.shape)
        mask = (bias if shift_mask is None else (bias + shift_mask).flatten(0, 1))[None]
        if keep:
            self.masks[shift_mask] = mask
        return mask


class Stage(nn.Module):
    """Swin blocks, then PWAM, the gate that lets its residual into the map, and patch merging."""

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
        self.grad_checkpointing = False

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, dim), text (B, T, text_dim), mask (B, T) to the residual r (B, H, W, dim) and the next x.

        There is no next x after the last stage.
        """
        _, height, width, _ = x.shape
        x = x.float().flatten(1, 2)  # under autocast, too, what the residuals are added to keeps float32
        run = recompute if self.grad_checkpointing else call
        for block in self.blocks:
            x = run(block, x, height, width)
        residual = run(self.fusion, x, text, mask)
        map_size = (height, width)
        if self.downsample is None:  # nothing depends on the map behind the last residual
            return residual.unflatten(1, map_size), None
        x = x + self.res_gate(residual) * residual
        return residual.unflatten(1, map_size), self.downsample(x.unflatten(1, map_size))


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
        # Part of the checkpoint format, but never used.
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
        mask = mask.to(text.dtype)
        x = self.patch_embed(image)
        features = []
        for i, stage in enumerate(self.layers):
            residual, x = stage(x, text, mask)
            features.append(getattr(self, f"norm{i}")(residual).permute(0, 3, 1, 2))
        return tuple(features)
