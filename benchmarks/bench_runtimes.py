"""The default evaluation beside what else could run the model: the plain model, torch.compile and ONNX Runtime.

    pip install onnx onnxscript onnxruntime
    python benchmarks/bench_runtimes.py [--shape readme|demo] [--batches 1 8] [--out FILE.json]

Every way runs in turn with the default in processes of their own, with as many threads each. The exported model is
checked against the plain one before it is measured.
"""
import argparse
import importlib.util
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

from models import INPUTS
from utils.errors import InputError, run
from utils.flags import ArgumentParser, at_least

DEFAULT, RUNTIME = "default", "onnxruntime"
WAYS = [DEFAULT, "plain", "torchcompile", RUNTIME]
FOLDER = "RIS_FUSION_BENCHMARK"  # environment variable: where the exported model is for the measuring processes
TOLERANCE = 1e-3  # of the largest absolute value of an output


class Runtime:
    """The exported model in ONNX Runtime on the CPU."""

    def __init__(self, path: str, inputs: dict[str, torch.Tensor]):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {name: inputs[name].numpy() for name in INPUTS}

    def run(self, times: int = 1) -> list:
        """The outputs, fused and logits."""
        for _ in range(times):
            outputs = self.session.run(None, self.inputs)
        return outputs


def path_of(folder: str, batch_size: int) -> str:
    """Where `export` writes the model of a batch size."""
    return os.path.join(folder, f"batch_{batch_size}.onnx")


@torch.no_grad()
def export(args: argparse.Namespace, folder: str) -> dict[str, float]:
    """Write the plain model for one batch size and compare it; the largest differences, relative to the outputs.

    Raises:
        InputError: it gives other results.
    """
    device = torch.device("cpu")
    model, batch = make_model(args.shape, device).eval(), make_batch(args.batch_size, args.img_size, device)
    inputs = tuple(batch[name] for name in INPUTS)
    path = path_of(folder, args.batch_size)
    torch.onnx.export(model, inputs, path, input_names=list(INPUTS), output_names=["fused", "logits"], dynamo=True,
                      verbose=False)
    differences = {}
    for name, ours, theirs in zip(("fused", "logits"), model(*inputs), Runtime(path, batch).run(), strict=True):
        differences[name] = float((ours - torch.from_numpy(theirs)).abs().max() / ours.abs().max())
        if not differences[name] <= TOLERANCE:
            raise InputError(f"{name} of the exported model differs by {differences[name]:.2g} of its largest value")
    return differences


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
    if RUNTIME in args.ways and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise InputError("onnxruntime is measured with packages that are not in requirements.txt: "
                         "pip install onnx onnxscript onnxruntime, or leave it out of --ways")

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
