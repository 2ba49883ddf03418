"""LAVT (Yang et al., CVPR 2022): a language-aware Swin backbone and a light decoder segment the referred object."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .swin import LanguageSwin


def upsample(x: Tensor, size: torch.Size) -> Tensor:
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
        map1, map2, map3, map4 = features
        x = self.merge(4, map4, map3)
        x = self.merge(3, x, map2)
        x = self.merge(2, x, map1)
        return self.conv1_1(x)

    def merge(self, k: int, deep: Tensor, shallow: Tensor) -> Tensor:
        """Bring a deeper map to a shallower one's size and mix the two with the layers `conv1_k` to `bn2_k`."""
        if deep.shape[-2:] != shallow.shape[-2:]:
            deep = upsample(deep, shallow.shape[-2:])
        x = torch.cat([deep, shallow], dim=1)
        for i in (1, 2):
            x = F.relu(getattr(self, f"bn{i}_{k}")(getattr(self, f"conv{i}_{k}")(x)))
        return x


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
        return upsample(logits.float(), image.shape[-2:])  # in float32 under autocast, for smooth outlines
