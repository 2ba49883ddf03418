"""A training step and an evaluation of the joint model on fake tensors: every operator that a CUDA GPU would run.

Fake tensors have a shape, a type and a device, but no numbers and no memory. So nothing of this needs a GPU: autocast
chooses the types as on CUDA, and attention is one kernel, as there.
"""
import contextlib
import heapq
import tempfile
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from measure import SHAPES, make_batch
from operators import Operator, Recorder
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from bert.tiny import write_tiny_bert
from models import INPUTS, build_criterion, build_model, losses
from models.fast import prepare_for_inference
from training.optimizer import build_optimizer, trained_networks
from training.running_statistics import RunningStatistics
from utils import color

GPU = torch.device("cuda", 0)


class Fused(TorchFunctionMode):
    """A context in which attention is CUDA's memory-efficient kernel, which takes the masks that the model has.

    FlashAttention's takes none; both read the inputs once and keep no scores.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
            is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    tensors = [query, key, value, attn_mask]
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]
    query, key, value, bias = tensors
    if bias is not None:
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, gradient, dropout_p, is_causal, scale=scale)[0]


@contextlib.contextmanager
def cuda_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """CUDA's autocast, whose list of operators differs from the CPU's; `torch.autocast` refuses it without a GPU."""
    if dtype is None:
        yield
        return
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def backward(loss: Tensor, recorder: Recorder) -> None:
    """Autograd's backward pass, node by node in the order of PyTorch's engine, which refuses fake tensors of a GPU.

    Gradients are stored in the parameters, and in `recorder.gradients` when they are complete.
    """
    root = loss.grad_fn
    waiting, nodes = Counter(), [root]
    seen = {root}
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    nodes.append(node)
    given: dict = {root: [torch.ones_like(loss)]}
    ready, number = [(0, 0, root)], 0
    recorder.backward = True
    while ready:
        *_, node = heapq.heappop(ready)
        gradients = given.pop(node)
        with torch.no_grad(), recorder.at(recorder.place_of(node._sequence_nr())):
            results = node(*gradients)
            results = results if isinstance(results, tuple) else (results,)
        for (after, index), gradient in zip(node.next_functions, results, strict=True):
            if after is None:
                continue
            with torch.no_grad(), recorder.at(recorder.place_of(node._sequence_nr())):
                _add(given.setdefault(after, [None] * len(after._input_metadata)), index, gradient, after)
            waiting[after] -= 1
            if waiting[after]:
                continue
            if hasattr(after, "variable"):
                after.variable.grad, = given.pop(after)
                recorder.gradients.append((len(recorder.operators), after.variable.nbytes))
            else:
                number += 1
                heapq.heappush(ready, (-after._sequence_nr(), number, after))
    recorder.backward = False


def _add(gradients: list[Tensor | None], index: int, gradient: Tensor | None, node) -> None:
    """Add a gradient to those of a node's outputs, in the shape and type of that output."""
    if gradient is None:
        return
    output, before = node._input_metadata[index], gradients[index]
    gradient = gradient.sum_to_size(output.shape).to(output.dtype)
    gradients[index] = gradient if before is None else before + gradient


def _entering(recorder: Recorder, owner: nn.Module, method: str, place: str) -> None:
    inner = getattr(owner, method)

    def call(*inputs, **named):
        with recorder.at(place):
            return inner(*inputs, **named)

    setattr(owner, method, call)


@contextlib.contextmanager
def _following(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """A context in which the recorder's place is the path of the module that runs."""
    names, contexts = {module: name for name, module in model.named_modules()}, []

    def enter(module, _):
        contexts.append(recorder.at(names.get(module, recorder.place)))
        contexts[-1].__enter__()

    def leave(*_):
        contexts.pop().__exit__(None, None, None)

    for place, owner in (("fuser", model.fuser), ("fuser.net", model.fuser.net)):
        for method in ("encode", "decode"):
            _entering(recorder, owner, method, place)
    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _fake_constants() -> Iterator[None]:
    """A context in which the losses' constants are fake, as they would be on the device after the first step."""
    constants = {losses.sobel_kernels: (GPU,), losses.class_weights: (GPU,), losses.gaussian_window: (11, 1.5, GPU),
                 color.statistics: (GPU, torch.float32)}
    for constant, arguments in constants.items():
        constant.cache_clear()
        constant(*arguments)
    try:
        yield
    finally:
        for constant in constants:
            constant.cache_clear()


def _networks(shape: str) -> nn.Module:
    """The joint model on the meta device: without numbers."""
    flags = SimpleNamespace(**vars(SHAPES[shape]))
    with tempfile.TemporaryDirectory() as folder:
        if shape == "demo":
            write_tiny_bert(folder, ["the red car"])
            flags.ck_bert = folder
        with torch.device("meta"):
            return build_model(flags, pretrained=False)


def record_training(shape: str, batch_size: int, side: int, dtype: torch.dtype | None = None) -> Recorder:
    """One training step as `engine.train_one_epoch` runs it: forward, losses, backward, norms of gradients, AdamW.

    Args:
        shape: key of SHAPES.
        side: of the images, pixels.
        dtype: of autocast; None: float32.
    """
    recorder, model = Recorder(), _networks(shape)
    with FakeTensorMode(allow_non_fake_inputs=True), Fused(), _fake_constants():
        model.to_empty(device=GPU).train()
        batch = make_batch(batch_size, side, GPU)
        criterion = build_criterion(SHAPES[shape])
        optimizer = build_optimizer(model, GPU, lr_seg=1e-5, lr_pf=1e-5, wd_seg=1e-2, wd_pf=1e-2)
        with _following(model, recorder), recorder:
            with cuda_autocast(dtype):
                output = model(*(batch[name] for name in INPUTS))
            with recorder.at("losses"):
                loss, _ = criterion(output, batch["vis"], batch["ir"], batch["target"])
            backward(loss, recorder)
            with recorder.at("bookkeeping"):
                _keep_books(model)
        optimizer.step()  # makes its state, in the first step alone
        with recorder, recorder.at("optimizer"):
            optimizer.step()
    return recorder


def _keep_books(model: nn.Module) -> None:
    """What a step does for safety and for the log: check gradients, take their norms, keep running statistics."""
    for network in trained_networks(model).values():
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(
            gradients, torch.zeros((), device=GPU), torch.ones((), device=GPU))
        torch.stack(torch._foreach_norm(gradients)).norm()
    statistics = RunningStatistics(model)
    statistics.keep()
    statistics.put_back_unless(torch.ones((), device=GPU, dtype=torch.bool))


def record_evaluation(shape: str, batch_size: int, side: int, dtype: torch.dtype | None = None,
                      prepared: bool = True) -> Recorder:
    """One forward pass without gradients.

    Args:
        shape, side, dtype: as for `record_training`.
        prepared: as test.py evaluates, with `prepare_for_inference`; False: the model as `build_model` returns it.
    """
    recorder, model = Recorder(), _networks(shape).eval()
    if prepared:
        prepare_for_inference(model, torch.device("meta"), dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), Fused(), torch.no_grad():
        model.to_empty(device=GPU)
        batch = make_batch(batch_size, side, GPU)
        with _following(model, recorder), cuda_autocast(dtype):
            if prepared:
                model(*(batch[name][:1] for name in INPUTS))  # builds the score biases that are kept
            with recorder:
                model(*(batch[name] for name in INPUTS))
    return recorder


def scaled(small: list[Operator], large: list[Operator], batch_sizes: tuple[int, int], batch_size: int
           ) -> list[Operator]:
    """Operators of another batch size, from those of two batch sizes: flops and bytes are linear in it.

    Raises:
        ValueError: the two do not have the same operators.
    """
    if [op.name for op in small] != [op.name for op in large]:
        raise ValueError(f"batch sizes {batch_sizes} run different operators")
    share = (batch_size - batch_sizes[0]) / (batch_sizes[1] - batch_sizes[0])

    def between(one: int, other: int) -> int:
        return round(one + share * (other - one))

    return [Operator(a.name, a.place, a.backward, a.dtype, between(a.flops, b.flops),
                     {0: between(sum(a.inputs.values()), sum(b.inputs.values()))},
                     {0: between(sum(a.outputs.values()), sum(b.outputs.values()))}, a.kernels, a.elementwise)
            for a, b in zip(small, large, strict=True)]
