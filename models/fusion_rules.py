"""Fusion without parameters, to compare the learned fusion with."""
from typing import Any

import torch
from torch import Tensor, nn

from utils.color import IMAGENET_MEAN, IMAGENET_STD, luma


class FusionRule(nn.Module):
    """Fusion by a fixed rule, with the interface of `UNetFuser`. The sentence has no influence on it.

    Args:
        rule: `average` or `maximum`: the luma of both images averaged, or the larger one, with the visible image's
            chroma. `visible`: the visible image as it is. `infrared`: the infrared image's luma as grey. `given`:
            nothing is computed, a fused image comes with each pair (see `RISFusion.forward`).
    """

    mean: Tensor  # (1, 3, 1, 1), as the other; in no state dict
    std: Tensor

    def __init__(self, rule: str):
        super().__init__()
        self.rule = rule
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, vis: Tensor, ir: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Fuse a batch of image pairs; shapes as in `UNetFuser`."""
        return self.decode(self.encode(vis, ir), text, mask)

    def encode(self, vis: Tensor, ir: Tensor) -> Tensor:
        """vis, ir (B, 3, H, W), standardised, to the fused image, likewise.

        Raises:
            ValueError: the rule is `given`.
        """
        if self.rule == "given":
            raise ValueError("this model fuses nothing; a fused image must be given with each pair")
        if self.rule == "visible":
            return vis
        infrared = luma((ir * self.std + self.mean).clamp(0, 1))
        if self.rule == "infrared":
            return (infrared - self.mean) / self.std
        rgb = (vis * self.std + self.mean).clamp(0, 1)
        visible = luma(rgb)
        fused = (visible + infrared) / 2 if self.rule == "average" else torch.maximum(visible, infrared)
        # Of the same chroma, RGB values differ by as much as their luma.
        return ((rgb + fused - visible).clamp(0, 1) - self.mean) / self.std

    def decode(self, pair: Any, text: Tensor, mask: Tensor) -> Tensor:
        """What `encode` gave: the fused image itself."""
        return pair
