"""The default evaluation beside what else could run the model: the plain model, torch.compile and ONNX Runtime.

    pip install -r requirements-export.txt
    python benchmarks/bench_runtimes.py [--shape readme|demo] [--batches 1 8] [--out FILE.json]

Every way runs in turn with the default in processes of their own, with as many threads each. The exported model is
checked against the plain one before it is measured.
"""
import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

import torch
from bench_infer import Way
from measure import (
    add_shared_flags,
    compare,
    complete,
    forward_flops,
    machine,
    make_batch,
    make_model,
    print_comparison,
    save,
    serve,
)

from exporting.graph import OUTPUT_NAMES, open_onnx, relative_differences, require_packages, to_onnx
from models import INPUTS
from utils.errors import run
from utils.flags import ArgumentParser, at_least

DEFAULT, RUNTIME = "default", "onnxruntime"
WAYS = [DEFAULT, "plain", "torchcompile", RUNTIME]
FOLDER = "RIS_FUSION_BENCHMARK"  # environment variable: where the exported model is for the measuring processes


class Runtime:
    """The exported model in ONNX Runtime on the CPU."""

    def __init__(self, path: str, inputs: dict[str, torch.Tensor]):
        self.session, _ = open_onnx(path)
        self.inputs = {name: inputs[name] for name in INPUTS}

    def run(self, times: int = 1) -> list:
        """The outputs, fused and logits."""
        for _ in range(times):
            outputs = self.session(self.inputs)
        return outputs


def path_of(folder: str, batch_size: int) -> str:
    """Where `export` writes the model of a batch size."""
    return os.path.join(folder, f"batch_{batch_size}.onnx")


@torch.no_grad()
def export(args: argparse.Namespace, folder: str) -> dict[str, float]:
    """Write the plain model and compare it; the largest differences, relative to the outputs.

    Raises:
        InputError: it gives other results.
    """
    device = torch.device("cpu")
    model, batch = make_model(args.shape, device).eval(), make_batch(args.batch_size, args.img_size, device)
    inputs, path = {name: batch[name] for name in INPUTS}, path_of(folder, args.batch_size)
    to_onnx(model, inputs, path, OUTPUT_NAMES)
    return relative_differences(model(**inputs), Runtime(path, batch).run(), OUTPUT_NAMES)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_shared_flags(parser)
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=[1, 8], help="batch sizes, one after another")
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:], help="what to measure beside default")
    args = parser.parse_args()
    device = complete(args)
    if args.way:
        batch = make_batch(args.batch_size, args.img_size, device)
        way = Runtime(path_of(os.environ[FOLDER], args.batch_size), batch) if args.way == RUNTIME else Way(
            args.way, args, device)
        serve(way.run, device, args.times)
        return
    if device.type != "cpu":
        parser.error("this compares ways of computing on a CPU; add --device cpu")
    if RUNTIME in args.ways:
        require_packages()

    report: dict = {"machine": machine(device), "batches": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    flops = forward_flops(args.shape, args.img_size)["total"]
    for batch_size in args.batches:
        args.batch_size = batch_size
        found: dict = {}
        with tempfile.TemporaryDirectory() as os.environ[FOLDER]:
            if RUNTIME in args.ways:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:  # its memory is its own
                    found["differences"] = other.submit(export, args, os.environ[FOLDER]).result()
            found["ways"] = compare(__file__, [DEFAULT, *args.ways], args, device, args.batch_size * flops)
        report["batches"][batch_size] = found
        print_comparison(f"A forward pass beside the default, {args.shape} sizes, {args.img_size} px, batch "
                         f"{batch_size}; differences of the exported model: {found.get('differences')}",
                         found["ways"])
    save(report, args.out)


if __name__ == "__main__":
    run(main)
