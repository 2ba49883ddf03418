"""Speed and memory: what is installed from outside on a model that `build_model` has built.

The networks in `models/` know nothing of this folder. Without it training and evaluation give the same results, slower
and in more memory; only `--grad-checkpointing` needs it. What is active where:

- Evaluation (`prepare_for_inference`), on every device: batch norm folded into the convolutions, score biases kept.
  On a CPU with oneDNN also: images stored as NHWC, Swin's linear layers as 1×1 convolutions, wide 3×3 convolutions by
  Winograd's algorithm, and freed memory kept (`keep_freed_memory`), but not while a checkpoint is opened
  (`return_freed_memory`), and for one moment after a picture has been fused in tiles (`trim_freed_memory`).
- Evaluation in 16 bits: no Winograd; images as NHWC on every device.
- Evaluation compiled: no Winograd and no kept biases.
- Training, on a CPU: of large maps, what is cheap is computed again in the backward pass (`save_memory`), and freed
  memory is kept. The same in 16 bits. Compiled: only the memory is kept.
- Training, on a CUDA GPU or an NPU: nothing.
- Training with `--grad-checkpointing`, on every device: `checkpoint_activations`; on a CPU freed memory is also given
  back at once (`return_freed_memory`).
"""
from .inference import prepare_for_inference
from .memory import keep_freed_memory, return_freed_memory, trim_freed_memory
from .recompute import checkpoint_activations, save_memory

__all__ = ["checkpoint_activations", "keep_freed_memory", "prepare_for_inference", "return_freed_memory", "save_memory",
           "trim_freed_memory"]
