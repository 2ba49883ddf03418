"""Every operator that code runs, with its floating-point operations and bytes, recorded by PyTorch's dispatcher."""
import bisect
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PICKS = {"index_select", "embedding", "gather", "index"}  # read as much of their first input as they write
OVERWRITES = {"copy_", "fill_", "zero_", "bernoulli_", "new_zeros", "new_full", "new_ones", "zeros_like", "ones_like",
              "full_like", "empty_like", "random_", "uniform_", "normal_"}  # do not read their first input
FREE = {"_unsafe_view", "lift_fresh", "detach", "empty", "empty_like", "new_empty", "empty_strided",
        "new_empty_strided", "_record_function_enter_new", "_record_function_exit", "device"}
ELEMENTWISE = {"_to_copy", "clone", "copy_", "native_dropout", "native_dropout_backward", "threshold_backward"}
FOREACH_TENSORS = 36  # tensors that one kernel of a foreach function takes, as many as fit its arguments


@dataclass
class Operator:
    """One operator call.

    Attributes:
        name: ATen's, without the overload.
        place: path of the module that called it, or of the one whose backward pass it belongs to.
        backward: whether it ran in the backward pass.
        dtype: of its first floating-point result, as `bfloat16`; of its inputs if it has no such result.
        flops: floating-point operations of a matrix product, convolution or attention; 0 for all others.
        inputs, outputs: bytes read and written, by the number of the storage they are in.
        kernels: launched on a GPU.
        elementwise: whether each number of the result depends on one of each input.
    """

    name: str
    place: str
    backward: bool
    dtype: str
    flops: int
    inputs: dict[int, int]
    outputs: dict[int, int]
    kernels: int
    elementwise: bool

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(self.inputs.values()) + sum(self.outputs.values())

    @property
    def network(self) -> str:
        """The part of the training step that it belongs to."""
        return network_of(self.place)


def network_of(place: str) -> str:
    """The network of a module's path; `losses`, `optimizer` and `bookkeeping` stand for themselves."""
    *_, backbone = place.partition("segmenter.backbone.")
    if backbone.startswith("layers."):
        return f"Swin stage {int(backbone.split('.')[1]) + 1}"
    if backbone.startswith("norm"):
        return f"Swin stage {int(backbone[4]) + 1}"
    names = {"text_encoder": "text", "": "text", "fuser": "fuser", "segmenter.backbone": "Swin patches",
             "segmenter": "decoder"}
    return next((name for start, name in names.items() if start and place.startswith(start)),
                names.get(place, place))


@dataclass(eq=False)
class Recorder(TorchDispatchMode):
    """A context that records the operators that run within it, on real, fake or meta tensors.

    Attributes:
        operators: in the order in which they ran.
        gradients: (position in `operators`, bytes) of each parameter's gradient when it was complete.
    """

    operators: list[Operator] = field(default_factory=list)
    gradients: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.place, self.backward = "", False
        self._nodes: list[tuple[int, str]] = []  # sequence number of autograd's next node, place
        self._storages: dict[int, tuple[int, object]] = {}  # kept, so that no number is used twice

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """A context whose operators belong to `place`."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def place_of(self, sequence_number: int) -> str:
        """The place in the forward pass at which a node of autograd was made."""
        found = bisect.bisect_right(self._nodes, sequence_number, key=lambda entry: entry[0])
        return self._nodes[found][1] if found < len(self._nodes) else self.place

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not self.backward:
            self._nodes.append((torch._C._autograd._get_sequence_nr(), self.place))
        name = function._schema.name.split("::")[1]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name not in FREE and not _is_view(function):
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if function._schema.is_mutable and not outputs:  # foreach functions that change their inputs
                outputs = _changed(function, args, kwargs)
            self.operators.append(self._operator(function, name, inputs, outputs, args, kwargs, result))
        return result

    def _operator(self, function, name: str, inputs: list[Tensor], outputs: list[Tensor], args, kwargs, result
                  ) -> Operator:
        read = {self._number(tensor): tensor_bytes(tensor) for tensor in inputs}
        written = {self._number(tensor): tensor_bytes(tensor) for tensor in outputs}
        if inputs and name in OVERWRITES:
            read.pop(self._number(inputs[0]))
        if inputs and name in PICKS:
            read[self._number(inputs[0])] = min(tensor_bytes(inputs[0]), sum(written.values()))
        count = flop_registry.get(function._overloadpacket)
        kernels = 1
        if name == "convolution_backward":
            kernels = sum(args[10])
        elif "_foreach_" in name or "_fused_adam" in name:
            kernels = -(-len(args[0]) // FOREACH_TENSORS)
        floats = [tensor for tensor in (*outputs, *inputs) if tensor.is_floating_point()]
        return Operator(
            name, self.place, self.backward, str((floats or outputs or inputs)[0].dtype).removeprefix("torch.")
            if floats or outputs or inputs else "", count(*args, **kwargs, out_val=result) if count else 0,
            read, written, kernels, torch.Tag.pointwise in function.tags or name in ELEMENTWISE)

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        return self._storages.setdefault(storage._cdata, (len(self._storages), storage))[0]


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in memory; what is expanded counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count * tensor.element_size()


def _is_view(function) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns)


def _changed(function, args, kwargs) -> list[Tensor]:
    """The tensors that a function changes."""
    named = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | kwargs
    return [leaf for argument in function._schema.arguments if argument.alias_info and argument.alias_info.is_write
            for leaf in tree_leaves(named.get(argument.name)) if isinstance(leaf, Tensor)]
