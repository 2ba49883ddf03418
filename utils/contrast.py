"""The contrast of an object with what surrounds it, which an evaluation measures and a loss may raise."""
import torch.nn.functional as F
from torch import Tensor

RING = 0.1  # width of the ring around an object, as a share of the image's longer side


def ring(inside: Tensor) -> Tensor:
    """The surroundings of objects: their dilation by a square of RING of the image's side to each side, minus them.

    Args:
        inside: (B, H, W) bool, True on the object.
    Returns:
        (B, H, W) bool, empty where there is no object or where it covers the whole image.
    """
    reach = round(RING * max(inside.shape[-2:]))
    dilated = inside[:, None].float()
    for down, across in ((reach, 0), (0, reach)):  # one direction after the other, since the square is large
        dilated = F.max_pool2d(dilated, (2 * down + 1, 2 * across + 1), stride=1, padding=(down, across))
    return (dilated[:, 0] > 0) & ~inside


def mean_over(image: Tensor, part: Tensor) -> Tensor:
    """The mean of image (B, H, W) over the pixels of part (B, H, W) bool, (B,); 0 where there are none."""
    return (image * part).sum((1, 2)) / part.sum((1, 2)).clamp(min=1)


def contrast(luma: Tensor, inside: Tensor, around: Tensor) -> Tensor:
    """How much brighter objects are than their surroundings.

    Args:
        luma: (B, H, W), any unit.
        inside, around: (B, H, W) bool, the object and its `ring`.
    Returns:
        (B,) mean inside minus mean around, in the unit of `luma`.
    """
    return mean_over(luma, inside) - mean_over(luma, around)
