"""Whether the device computes what it should."""
import copy
import math

import torch
from bench_train import Ours
from measure import LOSSES
from reference import Case, fill_, golden, inputs

from models import INPUTS
from models.fast import prepare_for_inference
from utils.device import seed_everything

from .child import Wrong

OUTPUTS, LOSS_TERMS, NORMS = 1e-3, 1e-3, 1e-2  # largest relative deviations from the published figures
GRADIENTS = 1e-2  # and of a network's gradient from the CPU's, in the 2-norm
MOST_IOU_LOST = 0.01  # of the masks in bfloat16, beyond what bfloat16 itself costs: what it costs on the CPU
OBJECT = 0.9  # share of pixels that the classifier's bias makes object; random weights alone have no clear masks


def networks(bench) -> None:
    """The rows that compare single passes and steps."""
    bench.use_tf32(False, convolutions=False)
    bench.row("published figures, float32", lambda: published_figures(bench))
    bench.row("no host sync in a training step", lambda: no_host_sync(bench))
    bench.row("a training step against the CPU", lambda: step_against_cpu(bench))
    bench.row("bf16 masks against float32", lambda: masks_in_16_bits(bench))


def published_figures(bench) -> dict:
    """The figures in tests/figures/golden.json."""
    weights = {name: value for name, value in LOSSES.items() if name != "seg_loss"}
    largest = dict.fromkeys(("outputs", "losses", "norms of gradients"), (0.0, ""))
    for name, figures in list(golden().items())[:1 if bench.tiny else None]:
        case = Case(figures, bench.device, weights)
        found = {"outputs": case.outputs(), "losses": case.losses(), "norms of gradients": case.gradients()}
        found["outputs"]["fused in training"] = case.fused_in_training()
        for kind, deviations in found.items():
            where = worst(deviations)
            largest[kind] = max(largest[kind], (deviations[where], f"{where} of {name}"), key=_not_a_number_first)
    result = {f"largest deviation of {kind}": value for kind, (value, _) in largest.items()}
    for (kind, (value, where)), most in zip(largest.items(), (OUTPUTS, LOSS_TERMS, NORMS), strict=True):
        if not value <= most:
            raise Wrong(f"{kind} deviate by {value:.1e}, more than {most:g}: {where}", result)
    return result


def worst(deviations: dict[str, float]) -> str:
    """The name of the largest, or of one that is no number."""
    return max(deviations, key=lambda name: _not_a_number_first((deviations[name],)))


def _not_a_number_first(deviation: tuple) -> tuple[bool, float]:
    return math.isnan(deviation[0]), deviation[0]


class Watched:
    """A loader of one batch, over and over; the steps in the middle must not wait for the GPU."""

    def __init__(self, batch: dict, steps: int):
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for number in range(self.steps):
            # The first steps make what is kept, and the loss terms are read after the last.
            torch.cuda.set_sync_debug_mode("error" if 2 <= number < self.steps - 1 else "default")
            yield self.batch


def no_host_sync(bench) -> dict:
    """Steps of `train_one_epoch` while PyTorch refuses everything that waits for the GPU."""
    steps = 6
    way = Ours(bench.args(2), bench.device, amp=True, model=bench.model())
    try:
        way.train_on(Watched(way.batch, steps), print_freq=10 * steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps watched": steps - 3}


def without_dropout(model: torch.nn.Module) -> None:
    """Let a model stay without dropout and stochastic depth, which draw other numbers on each device, in training."""
    for module in model.modules():
        module.training = isinstance(module, torch.nn.BatchNorm2d)
    model.train = lambda mode=True: model


def one_step(way: Ours) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The loss terms of a step, and each network's gradient on the CPU, as a vector."""
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_) -> None:
        for name, network in way.networks.items():
            gradients[name] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).cpu()

    handle = way.optimizer.register_step_pre_hook(keep)
    progress = way.train_on([way.batch])
    handle.remove()
    return progress.sums, gradients


def compare_steps(expected, found) -> dict[str, float]:
    """How far two results of `one_step` are apart, relative.

    Raises:
        Wrong: too far.
    """
    (terms, gradients), (other_terms, other_gradients) = expected, found
    if not terms or terms.keys() != other_terms.keys():
        raise Wrong(f"the loss is not finite: {terms}, {other_terms}", {})
    result = {"largest deviation of losses": max(
        abs(other_terms[name] - value) / max(abs(value), 1e-6) for name, value in terms.items())}
    for name, gradient in gradients.items():
        difference = (other_gradients[name] - gradient).norm() / gradient.norm()
        result[f"gradient of {name}"] = float(difference)
    for name, value in result.items():
        most = LOSS_TERMS if "losses" in name else GRADIENTS
        if not value <= most:
            raise Wrong(f"{name}: {value:.1e}, more than {most:g}", result)
    return result


def step_against_cpu(bench) -> dict:
    """Losses and gradients of a step without dropout, float32, on the device and on the CPU."""
    found = []
    for device in (torch.device("cpu"), bench.device):
        model = bench.model().to(device)
        without_dropout(model)
        found.append(one_step(Ours(bench.args(2, bench.side if bench.tiny else 192), device, model=model)))
    return compare_steps(*found)


def masks_in_16_bits(bench) -> dict:
    """How far bfloat16 moves the masks, on the device and on the CPU."""
    on_cpu = _in_16_bits(bench, torch.device("cpu"))["IoU of masks"]
    result = _in_16_bits(bench, bench.device) | {"IoU on the CPU": on_cpu}
    if not result["IoU of masks"] >= on_cpu - MOST_IOU_LOST:
        raise Wrong(f"IoU {result['IoU of masks']:.4f}; bfloat16 on the CPU has {on_cpu:.4f}", result)
    return result


@torch.inference_mode()
def _in_16_bits(bench, device: torch.device) -> dict[str, float]:
    """IoU of the masks in bfloat16 and float32, from the reference weights."""
    batch = inputs(bench.side, bench.side, 2, vocab=20)
    images = [batch[name].to(device) for name in INPUTS]
    model = bench.model().to(device)
    for network in model.networks().values():
        fill_(network)
    in_16_bits = prepare_for_inference(copy.deepcopy(model), device, torch.bfloat16)
    full = prepare_for_inference(model, device)(*images)
    with torch.autocast(device.type, torch.bfloat16):
        half = in_16_bits(*images)
    margins = [(output.logits[:, 1] - output.logits[:, 0]).float().cpu() for output in (full, half)]
    bias = margins[0].flatten().sort().values[int((1 - OBJECT) * margins[0].numel())]
    masks = [margin > bias for margin in margins]
    iou = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    fused = float((half.fused.float() - full.fused).norm() / full.fused.norm())
    return {"IoU of masks": iou, "relative error of the fused image": fused,
            "relative error of the logits' difference": float((margins[1] - margins[0]).norm() / margins[0].norm())}


def seeded(bench, batch_size: int, **flags) -> Ours:
    """A way to train from the same weights, whose dropout draws the same numbers in each call."""
    way = Ours(bench.args(batch_size), bench.device, model=bench.model(), **flags)
    seed_everything(0)
    return way
