"""The joint model as one graph that needs none of this code: ONNX, or a program of torch.export.

The batch is free. The image size is not: Swin's padding, window masks and bias tables are computed for one size, and a
graph that derived them from its input would hold them as further operators for every block.
"""
import importlib.util
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from data import MMRISDataset
from data.prepare.scenes import draw_infrared, draw_visible, expressions, make_scene, sentence
from evaluation.inference import LoadedCheckpoint, fast
from models import INPUTS
from models.ris_fusion import RISFusion
from utils import color
from utils.errors import InputError
from utils.text import counted, first_line

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUT_NAMES, OUTPUT_NAMES = ("visible", "infrared", "input_ids", "attention_mask"), ("fused", "logits")
LARGEST_BATCH = 4096
TOLERANCE = 1e-3   # of the largest absolute value of an output
LEAST_IOU = 0.999  # of the masks of graph and model
RANDOM, REAL = 3, 4  # numbers of pairs on which a graph is checked
ROUNDS = 5

Run = Callable[[dict[str, Tensor]], Sequence[Tensor]]


class ImagesIn01(nn.Module):
    """The joint model with images in [0, 1] on both sides, so that other programs need not standardise."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: RISFusion):
        super().__init__()
        self.model = model
        for name, values in zip(("mean", "std"), color.statistics(torch.device("cpu"), torch.float32), strict=True):
            self.register_buffer(name, values.clone())

    def forward(self, visible: Tensor, infrared: Tensor, input_ids: Tensor, attention_mask: Tensor
                ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) float32 in [0, 1], ids and mask (B, T) int64 to the fused image, likewise, and logits."""
        visible, infrared = ((image - self.mean) / self.std for image in (visible, infrared))
        fused, logits = self.model(visible, infrared, input_ids, attention_mask)
        return (fused * self.std + self.mean).clamp(0, 1), logits


def require_packages() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        InputError: one is not.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"ONNX needs packages that are not installed, namely {', '.join(absent)}: "
                         "pip install -r requirements-export.txt")


def write(loaded: LoadedCheckpoint, path: str, kind: str, parquet: str) -> list[str]:
    """Write a graph, compare it with the model, and time both.

    Args:
        loaded: its model is made faster for the timing, and of no use for anything else afterwards.
        path: where to.
        kind: "onnx" or "pt2".
        parquet: data for the comparison; "": synthetic scenes.
    Returns:
        Lines that say what was written and measured.
    Raises:
        InputError: the graph cannot be made, or its results differ from the model's.
    """
    module = ImagesIn01(loaded.model)
    real, source = pairs(loaded, parquet)
    if kind == "onnx":
        to_onnx(module, real[0], path, OUTPUT_NAMES)
        run, lines = open_onnx(path)
    else:
        to_pt2(module, real[0], path)
        run, lines = open_pt2(path)
    lines.append(f"  the batch is free; images are {loaded.img_size} × {loaded.img_size} px, as the checkpoint or "
                 f"--img_size says, and sentences {real[0]['input_ids'].shape[1]} word pieces: both are fixed")
    for name, batches in (("random input", [random_batch(loaded, RANDOM)]), (source, real)):
        lines.append(f"{name}: {compare(module, run, batches)}")
    if fast is not None:
        fast.prepare_for_inference(loaded.model, torch.device("cpu"))
    seconds = in_turn([lambda: run(real[0]), torch.inference_mode()(lambda: module(**real[0]))])
    lines.append(f"one pair, {counted(torch.get_num_threads(), 'thread')}, median of {ROUNDS}: this graph "
                 f"{1e3 * seconds[0]:.1f} ms, PyTorch as predict.py runs it {1e3 * seconds[1]:.1f} ms")
    return lines


def to_onnx(module: nn.Module, inputs: dict[str, Tensor], path: str, outputs: Sequence[str]) -> None:
    """Write a module as an ONNX file, weights included.

    Args:
        module: in evaluation mode, on the CPU.
        inputs: by the names of its arguments, batches of any number; the batch of the graph is free.
        path: where to.
        outputs: names of its results.
    Raises:
        InputError: this PyTorch cannot do it.
    """
    quiet = logging.getLogger("onnxscript"), logging.getLogger("torch.onnx")
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:  # they report what they tried and did without
            logger.setLevel(logging.CRITICAL)
        # As plain operators: the exporter mistakes the order in which the fused attention's result lies in memory.
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(trace(module, inputs), None, path, input_names=list(inputs), output_names=list(outputs),
                              dynamic_shapes={name: {0: "batch"} for name in inputs}, opset_version=OPSET,
                              external_data=False, dynamo=True, verbose=False)
    except Exception as error:  # the exporter raises many kinds
        raise InputError(f"PyTorch {torch.__version__} cannot export this model to ONNX ({first_line(error)})"
                         ) from error
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def to_pt2(module: nn.Module, inputs: dict[str, Tensor], path: str) -> None:
    """Write a module as a program of torch.export, whose results are a tuple; arguments as of `to_onnx`."""
    try:
        torch.export.save(trace(module, inputs), path)
    except Exception as error:  # as above
        raise InputError(f"PyTorch {torch.__version__} cannot export this model ({first_line(error)})") from error


@torch.no_grad()
def trace(module: nn.Module, inputs: dict[str, Tensor]):
    """A `torch.export.ExportedProgram` whose batch is free, from batches of two: of one it would be taken as fixed."""
    example = {name: torch.cat([tensor[:1], tensor[:1]]) for name, tensor in inputs.items()}
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    return torch.export.export(module, (), example, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: float | None = None, **_) -> Tensor:
    """`scaled_dot_product_attention` in the operators that it stands for, without dropout and causal masks."""
    assert not dropout_p and not is_causal
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = (scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else
                  scores + attn_mask)
    return scores.softmax(-1) @ value


def open_onnx(path: str) -> tuple[Run, list[str]]:
    """A function that runs an ONNX file on the CPU with PyTorch's number of threads, and lines that describe it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(array) for array in found]

    opsets = [entry.version for entry in onnx.load(path, load_external_data=False).opset_import if not entry.domain]
    lines = [f"{os.path.basename(path)}: ONNX opset {opsets[0]}, PyTorch {torch.__version__}, ONNX Runtime "
             f"{onnxruntime.__version__}"]
    for kind, entries in (("in ", session.get_inputs()), ("out", session.get_outputs())):
        lines += [f"  {kind} {entry.name} ({', '.join(map(str, entry.shape))}) {entry.type}" for entry in entries]
    return run, lines


def open_pt2(path: str) -> tuple[Run, list[str]]:
    """Likewise of a program of torch.export."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: dict[str, Tensor]) -> Sequence[Tensor]:
        return module(**inputs)

    return run, [f"{os.path.basename(path)}: a program of torch.export, PyTorch {torch.__version__}"]


def pairs(loaded: LoadedCheckpoint, parquet: str) -> tuple[list[dict[str, Tensor]], str]:
    """Real pairs in batches of one, and in words where they come from."""
    if not parquet:
        return list(_scenes(loaded)), "synthetic scenes"
    dataset = MMRISDataset(parquet, loaded.tokenizer, loaded.img_size, masks=False)
    samples = [dataset[row] for row in range(min(REAL, len(dataset)))]
    batches = [{name: sample[key][None] for name, key in zip(INPUT_NAMES, INPUTS, strict=True)} for sample in samples]
    return [batch | {name: color.destandardise(batch[name]) for name in INPUT_NAMES[:2]} for batch in batches], parquet


def _scenes(loaded: LoadedCheckpoint) -> Iterator[dict[str, Tensor]]:
    for number in range(REAL):
        scene = make_scene((0, number))
        images = (draw_visible(scene, loaded.img_size), draw_infrared(scene, loaded.img_size))
        ids, mask = loaded.tokenizer([sentence(expressions(scene, 0)[0])])
        yield dict(zip(INPUT_NAMES, (*map(_to_tensor, images), ids, mask), strict=True))


def _to_tensor(image: np.ndarray) -> Tensor:
    """(S, S, 3) or (S, S) uint8 to (1, 3, S, S) float32 in [0, 1]."""
    tensor = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1).float().div(255)
    return tensor.expand(3, -1, -1)[None].contiguous()


def random_batch(loaded: LoadedCheckpoint, size: int) -> dict[str, Tensor]:
    """Images of random pixels, and sentences of 3 to 20 random word pieces."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, size, 3, loaded.img_size, loaded.img_size, generator=generator)
    _, tokens = loaded.tokenizer([""])[0].shape
    lengths = torch.linspace(3, tokens, size).long()
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    ids = torch.randint(len(loaded.tokenizer), (size, tokens), generator=generator) * mask
    return dict(zip(INPUT_NAMES, (*images, ids, mask), strict=True))


@torch.no_grad()
def compare(module: nn.Module, run: Run, batches: list[dict[str, Tensor]]) -> str:
    """How far a graph's results are from the module's, in words.

    Raises:
        InputError: further than TOLERANCE, or the masks overlap by less than LEAST_IOU.
    """
    expected, found = ([torch.cat(parts) for parts in zip(*map(function, batches), strict=True)]
                       for function in (lambda batch: module(**batch), run))
    differences = relative_differences(expected, found, OUTPUT_NAMES)
    ours, theirs = (outputs[1].argmax(1).bool() for outputs in (expected, found))
    union = (ours | theirs).sum().item()
    iou = (ours & theirs).sum().item() / union if union else 1.0
    if not iou >= LEAST_IOU:
        raise InputError(f"the masks of the exported model overlap with those of PyTorch by an IoU of {iou:.4f} only")
    words = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    return f"differs from PyTorch by {words} of the largest value, IoU of the masks {iou:.5f}"


def relative_differences(expected: Sequence[Tensor], found: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    """The largest difference of each output, relative to its largest absolute value.

    Raises:
        InputError: one exceeds TOLERANCE.
    """
    differences = {}
    for name, ours, theirs in zip(names, expected, found, strict=True):
        differences[name] = float((ours - theirs).abs().max() / ours.abs().max())
        if not differences[name] <= TOLERANCE:
            raise InputError(f"{name} of the exported model differs by {differences[name]:.2g} of its largest value")
    return differences


def in_turn(functions: Sequence[Callable]) -> list[float]:
    """Median seconds of each function, called in turn after one call that does not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(ROUNDS + 1):
        for function, found in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if number:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]
