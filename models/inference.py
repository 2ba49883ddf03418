"""The same networks, rearranged for evaluation alone: what no longer changes is worked out once."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.device import has_onednn

from .fuser import DoubleConv
from .lavt import Decoder
from .pwam import Projection
from .ris_fusion import Output, RISFusion
from .swin import SwinBlock
from .tta import forward_tta
from .winograd import WinogradConv

WIDE = 2**13  # channels in times channels out, from which on WinogradConv was the faster one


class PointwiseLinear(nn.Module):
    """A linear layer as a 1×1 convolution, for the CPU, where PyTorch has oneDNN for the one and not for the other.

    Measured at Swin's sizes: 1.1 to 1.4 times as fast on an AMD EPYC with AVX-512, in float32 and in bfloat16, and
    about as fast on one with AVX2.
    """

    def __init__(self, linear: nn.Linear | Projection):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().flatten(1)[:, :, None, None], requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # a view: NHWC is how they lie already
        return F.conv2d(pixels, self.weight, self.bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


@torch.no_grad()
def prepare_for_inference(model: RISFusion, device: torch.device, amp_dtype: torch.dtype | None = None,
                          compiled: bool = False) -> RISFusion:
    """Rearrange a model for good, so that it computes the same numbers, but for rounding, in less time.

    Batch norm goes into the convolutions before it, and each Swin block keeps its attention mask. On a CPU with oneDNN
    Swin's linear layers become `PointwiseLinear` and wide convolutions `WinogradConv`, the latter not for 16 bits and
    not for a compiler, which both have ways of their own. Images are stored as NHWC there, and wherever 16 bits are
    computed in. The state dict is then no longer that of the checkpoint format, and the model cannot be trained.

    Args:
        device: where it will compute.
        amp_dtype: what it will compute in under autocast; None: float32.
        compiled: whether it will be compiled.
    Returns:
        The same model, in evaluation mode, on the device.
    """
    model.eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, DoubleConv):
            for conv, norm in ((0, 1), (3, 4)):
                module.block[conv] = fuse_conv_bn_eval(module.block[conv], module.block[norm])
                module.block[norm] = nn.Identity()
        elif isinstance(module, Decoder):
            for name in [name for name, _ in module.named_children() if name.startswith("bn")]:
                conv = name.replace("bn", "conv")
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, name)))
                setattr(module, name, nn.Identity())
        elif isinstance(module, SwinBlock):
            module.masks = {}
    if has_onednn(device):
        if model.segmenter is not None:
            _replace(model.segmenter.backbone, PointwiseLinear, lambda layer: isinstance(layer, nn.Linear | Projection))
        if amp_dtype is None and not compiled:
            _replace(model, WinogradConv, lambda layer: isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
                     and layer.in_channels * layer.out_channels >= WIDE)
    nhwc = has_onednn(device) or amp_dtype is not None
    return model.to(device, memory_format=torch.channels_last if nhwc else torch.contiguous_format)


def _replace(module: nn.Module, kind: type, which) -> None:
    """Make a `kind` of each layer below `module` that `which` picks."""
    for name, child in module.named_children():
        if which(child):
            setattr(module, name, kind(child))
        else:
            _replace(child, kind, which)


class Inference(nn.Module):
    """Calls a model with what an evaluation asks for; takes what `RISFusion` takes and gives float32.

    Args:
        model: a `RISFusion`.
        flip: average with the mirrored images, see `forward_tta`.
        left_right: as in `forward_tta`.
        amp_dtype: what to compute in where autocast finds it safe; None: everything in float32.
        compile_mode: for `torch.compile`, see `utils.device.compile_mode`; None: not compiled.
    """

    def __init__(self, model: nn.Module, flip: bool = False, left_right: tuple[int, int] | None = None,
                 amp_dtype: torch.dtype | None = None, compile_mode: str | None = None):
        super().__init__()
        if compile_mode:
            model.compile(mode=compile_mode, dynamic=False)
        self.model = model
        self.flip = flip
        self.left_right = left_right
        self.amp_dtype = amp_dtype
        self.compiled_for: int | None = 0 if compile_mode else None  # batch size, 0 before the first batch

    def forward(self, vis: Tensor, ir: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Shapes as in `RISFusion`."""
        inputs = (vis, ir, input_ids, attention_mask)
        with torch.autocast(vis.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            output = forward_tta(self._once, *inputs, self.left_right) if self.flip else self._once(*inputs)
        return Output(output.fused.float(), output.logits.float())

    def _once(self, *inputs: Tensor) -> Output:
        if self.compiled_for is None:
            return self.model(*inputs)
        size = len(inputs[0])
        self.compiled_for = max(self.compiled_for, size)
        if size < self.compiled_for:  # filled up with its last sample, since compiling for another size takes minutes
            index = torch.arange(self.compiled_for, device=inputs[0].device).clamp(max=size - 1)
            inputs = [tensor.index_select(0, index) for tensor in inputs]
        # Copies, since a CUDA graph writes its next results to the same place.
        return Output(*(tensor[:size].clone() for tensor in self.model(*inputs)))
