"""How fast images are fused and segmented, beside the plain model.

    python benchmarks/bench_infer.py [--shape readme|demo] [-b N] [--device cpu] [--profile DIR] [--out FILE.json]
    python benchmarks/bench_infer.py --ckpt CHECKPOINT --parquet FILE     # how far --amp moves a trained model's masks

Each way adds one part of models/fast to the way before, up to `default`, which is what test.py and predict.py do; then
come flags of test.py. Each is measured in turn with the baseline, the model as build_model gives it, and a matrix
product, in processes of their own.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

import torch
from measure import (
    add_shared_flags,
    compare,
    complete,
    fast_enough,
    forward_flops,
    in_turn,
    machine,
    make_batch,
    make_model,
    print_comparison,
    save,
    serve,
    timed,
)
from parts import PartClock, parts_apart, print_parts, report_parts, write_profile

from evaluation.inference import Inference, open_checkpoint
from models import INPUTS
from models.fast import keep_freed_memory, prepare_for_inference
from models.fast.inference import fold_batch_norm, keep_score_biases, use_pointwise_linear, use_winograd
from utils.device import compile_mode
from utils.errors import run
from utils.flags import ArgumentParser, at_least

BASELINE = "plain"
STEPS = {  # each is applied to the model after those before it
    BASELINE: lambda model: model,
    "batch norm folded": fold_batch_norm,
    "and attention masks kept": keep_score_biases,
    "and NHWC": lambda model: model.to(memory_format=torch.channels_last),
    "and linear layers as 1×1 convolutions": use_pointwise_linear,
    "and wide convolutions by Winograd": use_winograd,
}
WAYS = [*STEPS, "default"]  # which keeps freed memory, too
COMPILED = ["torchcompile", "amp+torchcompile"]


class Way:
    """A model as one of the ways has it run, and a batch for it; takes `model` if there is one already."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device, model: torch.nn.Module | None = None):
        self.model = (model or make_model(args.shape, device)).eval().requires_grad_(False)
        amp_dtype, compiled = (torch.bfloat16 if "amp" in name else None), "compile" in name
        if name in STEPS:
            for install in list(STEPS.values())[:list(STEPS).index(name) + 1]:
                install(self.model)
        else:
            prepare_for_inference(self.model, device, amp_dtype, compiled)
            keep_freed_memory(device)
        self.caller = Inference(self.model, amp_dtype=amp_dtype,
                                compile_mode=compile_mode(device) if compiled else None)
        batch = make_batch(args.batch_size, args.img_size, device)
        self.inputs = [batch[key] for key in INPUTS]

    def run(self, times: int = 1) -> None:
        with torch.inference_mode():
            for _ in range(times):
                self.caller(*self.inputs)


def measure_parts(args: argparse.Namespace, device: torch.device) -> dict:
    """Time or memory of the way that `--parts` names."""
    way = Way(args.parts, args, device)
    return report_parts(way, PartClock(way.model, device), args)


def sentences(way: Way, device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds of the first sentence about a pair, and of one more."""
    vis, ir, ids, mask = way.inputs
    with torch.inference_mode():
        pair = way.caller.encode_pair(vis, ir)

        def answer():
            return way.caller.answer(pair, way.caller.encode_text(ids, mask))

        times = in_turn({"first": timed(way.run, device), "one more": timed(answer, device)}, rounds)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def agreement(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """IoU of the masks with --amp and without, over the first rows of a parquet file."""
    from data import MMRISDataset, collate

    opened = [open_checkpoint(args.ckpt, device, amp=amp) for amp in (False, True)]
    dataset = MMRISDataset(args.parquet, opened[0].tokenizer, opened[0].img_size)
    rows = min(len(dataset), args.rows)
    both, either, ious = 0, 0, []
    for start in range(0, rows, 8):
        batch = collate([dataset[row] for row in range(start, min(start + 8, rows))])
        inputs = [batch[name].to(device) for name in INPUTS]
        with torch.inference_mode():
            full, half = (one.model(*inputs).logits.argmax(1).bool().flatten(1) for one in opened)
        intersection, union = (full & half).sum(1), (full | half).sum(1)
        both, either = both + int(intersection.sum()), either + int(union.sum())
        ious += (intersection / union)[union > 0].tolist()
    return {"rows": rows, "overall_iou": both / either, "mean_iou": statistics.mean(ious)}


def help_seconds() -> float:
    """CPU time of `test.py --help`, the least of five."""
    script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "test.py")
    spent = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, script, "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(spent)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_shared_flags(parser)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too; takes minutes more")
    parser.add_argument("--ckpt", help="compare this checkpoint's masks with --amp and without, and nothing else")
    parser.add_argument("--parquet", help="on the rows of this file")
    parser.add_argument("--rows", type=at_least(1), default=160, help="at most so many")
    args = parser.parse_args()
    if bool(args.ckpt) != bool(args.parquet):
        parser.error("--ckpt and --parquet go together")
    device = complete(args)
    if args.way:
        serve(Way(args.way, args, device).run, device, args.times)
        return
    if args.parts:
        print(json.dumps(measure_parts(args, device)))
        return

    report = {"machine": machine(device)}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if args.ckpt:
        report["agreement"] = found = agreement(args, device)
        print(f"Masks with --amp and without, {found['rows']} rows: overall IoU {found['overall_iou']:.4f}, "
              f"mean IoU {found['mean_iou']:.4f}")
        save(report, args.out)
        return
    flops = report["forward_flops"] = forward_flops(args.shape, args.img_size)
    names = fast_enough([*WAYS, "amp", *(COMPILED if args.compile else [])], device)
    report["passes"] = compare(__file__, names, args, device, args.batch_size * flops["total"])
    print_comparison(f"A forward pass, {args.shape} sizes, {args.img_size} px, batch {args.batch_size}: "
                     f"{flops['total'] / 1e9:.1f} GFLOP a sample", report["passes"])
    report["parts"] = parts_apart(__file__, [BASELINE, "default"], args)
    print_parts(report["parts"])
    report["sentences"] = sentences(Way("default", args, device), device, args.rounds)
    print("\nSentences about one pair: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in report["sentences"].items()))
    report["help_seconds"] = help_seconds()
    print(f"test.py --help: {report['help_seconds']:.2f} s of CPU time")
    if args.profile:
        write_profile(args.profile, {name: Way(name, args, device).run for name in (BASELINE, "default")},
                      report["parts"])
    save(report, args.out)


if __name__ == "__main__":
    run(main)
