"""The same networks, rearranged for evaluation alone: what no longer changes is worked out once."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.device import has_onednn

from .fuser import DoubleConv
from .lavt import Decoder
from .ris_fusion import Output, RISFusion
from .swin import LanguageSwin, SwinBlock
from .tta import forward_tta


class PointwiseLinear(nn.Module):
    """A linear layer as a 1×1 convolution, for the CPU, where PyTorch has oneDNN for the one and not for the other.

    Measured on an AMD EPYC: 1.1 to 1.4 times as fast at Swin's sizes in float32, and the same in bfloat16.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # a view: NHWC is how they lie already
        return F.conv2d(pixels, self.weight, self.bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


@torch.no_grad()
def prepare_for_inference(model: RISFusion, device: torch.device) -> RISFusion:
    """Rearrange a model for good, so that it computes the same numbers, but for rounding, in less time.

    Batch norm goes into the convolutions before it, and each Swin block keeps its attention mask. On a CPU with oneDNN
    images are stored as NHWC, and Swin's linear layers become `PointwiseLinear`. The state dict is then no longer that
    of the checkpoint format, and the model cannot be trained.

    Args:
        device: where it will compute.
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
        elif isinstance(module, LanguageSwin) and has_onednn(device):
            _replace_linears(module)
    return model.to(device, memory_format=torch.channels_last if has_onednn(device) else torch.contiguous_format)


def _replace_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PointwiseLinear(child))
        else:
            _replace_linears(child)


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
            model.compile(mode=compile_mode)
        self.model = model
        self.flip = flip
        self.left_right = left_right
        self.amp_dtype = amp_dtype
        self.compiled = bool(compile_mode)

    def forward(self, vis: Tensor, ir: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Shapes as in `RISFusion`."""
        with torch.autocast(vis.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            if self.flip:
                output = forward_tta(self.model, vis, ir, input_ids, attention_mask, self.left_right)
            else:
                output = self.model(vis, ir, input_ids, attention_mask)
        if self.compiled:  # a CUDA graph writes its next results to the same place
            output = Output(output.fused.clone(), output.logits.clone())
        return Output(output.fused.float(), output.logits.float())
