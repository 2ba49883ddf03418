"""A process that measures the rows of one task and sends each to the process that started it."""
import argparse
import copy
import functools
import gc
import importlib
import json
import os
import statistics
import sys
import time
import traceback

import torch
from measure import SHAPES, in_turn, make_model, matrix_rate, timed

from utils.device import is_out_of_memory, is_slow, peak_memory, reset_peak_memory, select_device

from .report import FAILED, OK, WRONG

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HALVINGS = 2  # of a batch that does not fit
ROUND_SECONDS = 1.0  # that a round of repeated steps should take


class Wrong(Exception):
    """A check that does not hold; its figures are reported all the same."""

    def __init__(self, why: str, figures: dict):
        super().__init__(why)
        self.figures = figures


class Bench:
    """What a task needs: the device, the sizes, the clocks, and the way to report a row.

    Args:
        settings: `device`, `tiny`, `batch_size`, `out` (folder for files to keep), `scratch` (folder that is deleted),
            `rows` (those wanted), `earlier` (figures of the rows so far: part → row → figures).
        send: takes a row as a dict.
    """

    def __init__(self, settings: dict, send):
        self.device = select_device(settings["device"])
        self.tiny, self.batch = settings["tiny"], settings["batch_size"]
        self.out, self.scratch = settings["out"], settings["scratch"]
        self.wanted, self.earlier, self._send = settings["rows"], settings["earlier"], send
        self.shape = "demo" if self.tiny else "readme"
        self.side = 64 if self.tiny else SHAPES["readme"].img_size
        self.rounds = 2 if self.tiny else 5

    def use_tf32(self, products: bool, convolutions: bool = True) -> None:
        """Let float32 products and convolutions on a GPU use TensorFloat-32, or not; by default only the latter do."""
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if products else "highest")
            torch.backends.cudnn.allow_tf32 = convolutions

    def amp(self) -> bool:
        """Whether the device is made for bfloat16."""
        return not is_slow(self.device, torch.bfloat16)

    @functools.cached_property
    def _initial(self) -> torch.nn.Module:
        return make_model(self.shape, torch.device("cpu"))

    def model(self) -> torch.nn.Module:
        """The joint model from the same random weights in each call, on the device, in a memory format of its own."""
        return copy.deepcopy(self._initial).to(self.device)

    def args(self, batch_size: int, side: int = 0) -> argparse.Namespace:
        """What the other benchmarks read of their command lines."""
        return argparse.Namespace(shape=self.shape, batch_size=batch_size, img_size=side or self.side,
                                  rounds=self.rounds, memory=False)

    def row(self, name: str, function) -> None:
        """Call `function()`, which returns figures, or figures and tables, and report the row, however that ends."""
        if name not in self.wanted:
            return
        start = time.perf_counter()
        try:
            result = function()
            figures, tables = result if isinstance(result, tuple) else (result, {})
            entry = {"state": OK, "figures": figures, "tables": tables}
        except Wrong as wrong:
            entry = {"state": WRONG, "why": str(wrong), "figures": wrong.figures}
        except Exception as error:
            entry = {"state": FAILED, "why": why(error)}
            traceback.print_exc()
        self._send({"row": name, "seconds": time.perf_counter() - start, **entry})
        self.free()

    def free(self) -> None:
        """Return the memory of what is no longer used to the device."""
        if "torch._dynamo" in sys.modules:  # else the next size is compiled for any size, which takes many minutes
            torch.compiler.reset()
        gc.collect()
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()

    def fitting(self, make, batch_size: int):
        """`make(size)`, an object with `run(times)`, of the first size that fits of the given one and its halves."""
        for halvings in range(HALVINGS + 1):
            size = max(batch_size >> halvings, 1)
            try:
                made = make(size)
                made.run(2)
                return made, size
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or halvings == HALVINGS or size == 1:
                    raise
            made = None
            self.free()
        raise AssertionError("the last size has returned or raised")

    def speed(self, run, batch_size: int, flops: float) -> dict[str, float]:
        """Figures of `run(times)`, which has run before: medians of rounds in turn with a large bfloat16 product.

        Args:
            batch_size: samples in one time.
            flops: operations of one time.
        """
        reset_peak_memory(self.device)
        first = timed(run, self.device)()
        peak = peak_memory(self.device)  # without the product's matrices
        times = 1 if self.tiny else min(max(round(ROUND_SECONDS / first), 1), 50)
        product, product_flops = self.product()
        seconds = in_turn({"ours": timed(lambda: run(times), self.device), "product": timed(product, self.device)},
                          self.rounds, warm_up=0)
        ours, rate = statistics.median(seconds["ours"]) / times, product_flops / statistics.median(seconds["product"])
        return {"ms": 1e3 * ours, "samples/s": batch_size / ours,
                "spread": f"{(max(seconds['ours']) - min(seconds['ours'])) / times / ours:.1%}",
                "peak GB": peak / 1e9, "TFLOP/s": flops / ours / 1e12,
                "of the product's rate": flops / ours / rate, "product, TFLOP/s": rate / 1e12}

    def product(self, times: int = 10):
        """A function that multiplies large matrices of random bfloat16 numbers, 8192 wide; and its operations."""
        times, side = (1, 256) if self.tiny else (times, 8192)
        product, flops = matrix_rate(self.device, torch.bfloat16, side)
        product()

        def multiply() -> None:
            for _ in range(times):
                product()
        return multiply, times * flops

    def forward_flops(self) -> float:
        """Operations of one sample's forward pass, as the device's row has them."""
        return 1e9 * self.earlier["device"]["device"]["forward pass, GFLOP"]


def why(error: BaseException) -> str:
    """An error in one line: its kind, its first words, and where in this project it arose."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename.startswith(ROOT) and "site-packages" not in frame.filename]
    at = f" ({os.path.relpath(ours[-1].filename, ROOT)}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {(str(error).strip() or 'without a word').splitlines()[0][:300]}{at}"


def serve(function: str, settings: dict) -> None:
    """Measure a task; every row becomes a line of JSON on standard output, where nothing else is written.

    Args:
        function: `module:function` of this folder.
        settings: of `Bench`.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the measured code prints is no answer
    done = []

    def send(row: dict) -> None:
        done.append(row["row"])
        print(json.dumps(row), file=answers, flush=True)

    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(f"gpu.{module}"), name)(Bench(settings, send))
    except Exception as error:  # before the first row, or between two
        traceback.print_exc()
        for row in settings["rows"]:
            if row not in done:
                send({"row": row, "seconds": 0.0, "state": FAILED, "why": why(error)})
