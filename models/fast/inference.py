"""A model prepared for evaluation alone: constants are computed once, layers are replaced by faster ones."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.device import has_onednn

from ..fuser import DoubleConv
from ..lavt import Decoder
from ..ris_fusion import RISFusion
from ..swin import SwinBlock
from .winograd import WinogradConv

WIDE = 2**13  # input channels times output channels from which on WinogradConv was measured to be faster


@torch.no_grad()
def prepare_for_inference(model: RISFusion, device: torch.device, amp_dtype: torch.dtype | None = None,
                          compiled: bool = False, winograd_from: int = WIDE) -> RISFusion:
    """Make a model faster for good; it computes the same numbers, but for rounding.

    What is done on which device stands in `models/fast/__init__.py`. The state dict is no longer that of the checkpoint
    format, and the model cannot be trained any more.

    Args:
        model: changed in place.
        device: where it will compute.
        amp_dtype: what it will compute in under autocast; None: float32.
        compiled: whether it will be compiled.
        winograd_from: input channels times output channels of a 3×3 convolution, from which on it is replaced by
            `WinogradConv`.
    Returns:
        The same model, in evaluation mode, on the device.
    """
    model.eval().requires_grad_(False)
    fold_batch_norm(model)
    keep_score_biases(model)
    if has_onednn(device):
        use_pointwise_linear(model)
        if amp_dtype is None and not compiled:
            use_winograd(model, winograd_from)
    nhwc = has_onednn(device) or amp_dtype is not None
    return model.to(device).to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


def fold_batch_norm(model: nn.Module) -> None:
    """Put each batch norm, with its running statistics, into the convolution before it."""
    for module in model.modules():
        if isinstance(module, DoubleConv):
            _fold(module.block, ("0", "1"), ("3", "4"))
        elif isinstance(module, Decoder):
            _fold(module, *((f"conv{i}_{k}", f"bn{i}_{k}") for k in (4, 3, 2) for i in (1, 2)))


def _fold(layers: nn.Module, *pairs: tuple[str, str]) -> None:
    """Fold in `layers` each batch norm into its convolution; `pairs` has the names of the convolution and the norm."""
    for conv, norm in pairs:
        setattr(layers, conv, fuse_conv_bn_eval(getattr(layers, conv), getattr(layers, norm)))
        setattr(layers, norm, nn.Identity())


class BiasKeepingBlock(SwinBlock):
    """A Swin block that computes `score_bias` once for each size of map. Needs an attribute `biases`, a dict."""

    biases: dict[tuple[int, int], Tensor]

    def score_bias(self, height: int, width: int) -> Tensor:
        """As of SwinBlock."""
        if torch.compiler.is_compiling():
            return super().score_bias(height, width)
        if (height, width) not in self.biases:
            self.biases[height, width] = super().score_bias(height, width)
        return self.biases[height, width]


def keep_score_biases(model: nn.Module) -> None:
    """Let each Swin block keep its `score_bias`."""
    for module in model.modules():
        if isinstance(module, SwinBlock):
            module.__class__ = BiasKeepingBlock
            assert isinstance(module, BiasKeepingBlock)
            module.biases = {}


class PointwiseLinear(nn.Module):
    """A linear layer as a 1×1 convolution, for a CPU: PyTorch convolves by oneDNN, but multiplies matrices by MKL.

    Measured at Swin's sizes: 1.1 to 1.4 times as fast on an AMD EPYC with AVX-512, in float32 and in bfloat16, and
    about as fast on one with AVX2.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # a view of channels that come last: NHWC
        return F.conv2d(pixels, self.weight, self.bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def use_pointwise_linear(model: RISFusion) -> None:
    """Replace the linear layers of Swin by 1×1 convolutions."""
    if model.segmenter is not None:
        _replace(model.segmenter.backbone, PointwiseLinear, lambda layer: isinstance(layer, nn.Linear))


def use_winograd(model: nn.Module, at_least: int = WIDE) -> None:
    """Replace 3×3 convolutions by `WinogradConv`.

    Args:
        at_least: input channels times output channels; narrower ones stay.
    """
    _replace(model, WinogradConv, lambda layer: isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
             and layer.in_channels * layer.out_channels >= at_least)


def _replace(module: nn.Module, kind: type[nn.Module], which: Callable[[nn.Module], bool]) -> None:
    """Make a `kind` of each layer below `module` for which `which` is true."""
    for name, child in module.named_children():
        if which(child):
            setattr(module, name, kind(child))
        else:
            _replace(child, kind, which)
