"""Standardising images and their luma: arithmetic that fuser, losses, data and pictures share."""
import functools

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.cache
@torch.inference_mode(False)
def statistics(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Mean and standard deviation, (2, 3, 1, 1); copied to a device only once, since the copy waits for the device."""
    return torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=dtype).view(2, 3, 1, 1).to(device)


def standardise(image: torch.Tensor) -> torch.Tensor:
    """(..., 3, H, W) float in [0, 1] to (x − mean) / std with the ImageNet statistics."""
    mean, std = statistics(image.device, image.dtype)
    return (image - mean) / std


def destandardise(image: torch.Tensor) -> torch.Tensor:
    """The inverse of `standardise`, clamped to [0, 1]."""
    mean, std = statistics(image.device, image.dtype)
    return (image * std + mean).clamp(0, 1)


def luma(rgb: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) RGB in [0, 1] to (B, 1, H, W) .299R + .587G + .114B (ITU-R BT.601)."""
    red, green, blue = rgb.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
