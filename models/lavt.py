"""LAVT (Yang et al., CVPR 2022): a language-aware Swin backbone and a light decoder find the referred object."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import recompute_cheap
from .swin import LanguageSwin


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinearly with the corners aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """From the deepest map to the finest: upsample, concat, and twice 3×3 conv, BatchNorm, ReLU.

    Args:
        embed_dim: Swin's width C; the four maps have C, 2C, 4C and 8C channels, the decoder 4C.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        width = 4 * embed_dim
        for k, (deep, shallow) in {4: (8 * embed_dim, 4 * embed_dim), 3: (width, 2 * embed_dim),
                                   2: (width, embed_dim)}.items():
            self.add_module(f"conv1_{k}", nn.Conv2d(deep + shallow, width, 3, padding=1, bias=False))
            self.add_module(f"bn1_{k}", nn.BatchNorm2d(width))
            self.add_module(f"conv2_{k}", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"bn2_{k}", nn.BatchNorm2d(width))
        self.conv1_1 = nn.Conv2d(width, 2, 1)

    def forward(self, features: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Feature maps, finest first, to logits (B, 2, h, w) at the size of the finest."""
        *shallower, x = features
        for k, skip in zip((4, 3, 2), reversed(shallower), strict=True):
            if x.shape[-2:] != skip.shape[-2:]:
                x = upsample(x, skip.shape[-2:])
            x = torch.cat([x, skip], dim=1)
            for i in (1, 2):
                norm = nn.Sequential(getattr(self, f"bn{i}_{k}"), nn.ReLU(inplace=True))
                x = recompute_cheap(norm, getattr(self, f"conv{i}_{k}")(x))
        return self.conv1_1(x)


class LAVT(nn.Module):
    """Referring segmentation of one image.

    Args:
        backbone: gives the four maps.
        embed_dim: its width C.
    """

    def __init__(self, backbone: LanguageSwin, embed_dim: int):
        super().__init__()
        self.backbone = backbone
        self.classifier = Decoder(embed_dim)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """image (B, 3, H, W) standardised, text (B, T, text_dim), mask (B, T) to logits (B, 2, H, W) float32."""
        logits = self.classifier(self.backbone(image, text, mask))
        return upsample(logits.float(), image.shape[-2:])  # under autocast, too: outlines lie between coarse pixels
