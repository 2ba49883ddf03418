"""How a trained model is run: averaged with the mirrored images, in 16 bits, compiled."""
import torch
from torch import Tensor, nn

from models import Output
from models.tta import forward_tta


class Inference(nn.Module):
    """A model with the options of an evaluation; takes what `RISFusion` takes and gives float32.

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
        if size < self.compiled_for:
            # Repeat the last sample up to the size of the other batches, because compiling for another takes minutes.
            index = torch.arange(self.compiled_for, device=inputs[0].device).clamp(max=size - 1)
            inputs = [tensor.index_select(0, index) for tensor in inputs]
        # Copies, because a CUDA graph writes the next results to the same memory.
        return Output(*(tensor[:size].clone() for tensor in self.model(*inputs)))
