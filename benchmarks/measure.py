"""What the speed benchmarks share: models of two sizes, clocks, counts of operations, tables."""
import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import torch
from tables import print_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import INPUTS, build_model
from utils.device import describe, is_slow, peak_memory, select_device, synchronize
from utils.flags import at_least, image_size

CPU = torch.device("cpu")
TOKENS, VOCABULARY = 20, 1000
LOSSES = {"seg_loss": "ce", "lambda_prefusion": 3.0, "w_ssim_vis": 0.5, "w_ssim_ir": 0.0, "w_mse_vis": 0.5,
          "w_mse_ir": 2.0, "w_sobel_vis": 0.0, "w_sobel_ir": 1.0, "w_grad": 1.0}
MODEL = {"mha": "", "fusion_drop": 0.0, "pretrained_swin_weights": "", "ck_bert": ""}
SHAPES = {
    "readme": SimpleNamespace(**MODEL, **LOSSES, swin_type="base", window12=True, prefusion_base_ch=32, img_size=480,
                              batch_size=1),
    "demo": SimpleNamespace(**MODEL, **LOSSES, swin_type="micro", window12=False, prefusion_base_ch=8, img_size=96,
                            batch_size=8),
}


def make_model(shape: str, device: torch.device) -> torch.nn.Module:
    """The joint model from random weights: the published sizes, or those of `make demo`."""
    from bert.tiny import write_tiny_bert

    args = SimpleNamespace(**vars(SHAPES[shape]))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if shape == "demo":
            write_tiny_bert(folder, ["the red car"])
            args.ck_bert = folder
        return build_model(args).to(device)


def make_batch(size: int, side: int, device: torch.device, words: int = 10) -> dict[str, torch.Tensor]:
    """Random images (B, 3, side, side), sentences of `words` word pieces between [CLS] and [SEP], and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, size, 3, side, side, generator=generator)
    ids = torch.randint(1, 20, (size, TOKENS), generator=generator)
    real = (torch.arange(TOKENS) < words + 2).long().expand(size, TOKENS)
    target = torch.zeros(size, side, side, dtype=torch.int64)
    target[:, side // 4: side // 2, side // 4: side // 2] = 1
    batch = {"vis": images[0], "ir": images[1], "input_ids": ids * real, "attention_mask": real.clone(),
             "target": target}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def forward_flops(shape: str, side: int, device: torch.device = CPU) -> dict[str, int]:
    """Floating-point operations of a forward pass of one sample, by network: two for each multiplication and addition.

    Counted by PyTorch, while `device` carries them out, with attention in separate operations, because its counter does
    not know the CPU's fused one.
    """
    model, batch = make_model(shape, device).eval(), make_batch(1, side, device)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(*(batch[name] for name in INPUTS))
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    total, text = by_module["Global"], by_module["RISFusion.text_encoder"]
    segmenter, decoder = by_module["RISFusion.segmenter"], by_module["RISFusion.segmenter.classifier"]
    return {"text": text, "fuser": total - text - segmenter, "swin": segmenter - decoder, "decoder": decoder,
            "total": total}


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048):
    """A function that multiplies two matrices of random numbers; and the operations that takes."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return lambda: a @ b, 2 * side ** 3


def timed(function, device: torch.device):
    """The function, returning the seconds it takes."""
    def run() -> float:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        return time.perf_counter() - start
    return run


def in_turn(ways: dict, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds, as the functions say, in each round; they take turns, so that what else the machine does hits all."""
    seconds = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            took = way()
            if number >= 0:
                seconds[name].append(took)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast: the median over the rounds, in each of which both were measured side by side."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


class Process:
    """A process of its own, in which a script does one thing whenever it is asked, by `serve`.

    Every way of doing a thing has one, so that none sees the memory of another.
    """

    def __init__(self, script: str, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_mb = 0.0

    def run(self) -> float:
        """Have it done; the seconds it took."""
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measuring process has died: {' '.join(map(str, self.process.args))}")
        answer = json.loads(line)
        self.peak_mb = answer["peak_mb"]
        return answer["seconds"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(function, device: torch.device, times: int) -> None:
    """Call `function(times)` for each line of standard input, and answer with the seconds of one of these times."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the function prints is no answer
    run = timed(lambda: function(times), device)
    for _ in sys.stdin:
        print(json.dumps({"seconds": run() / times, "peak_mb": peak_memory(device) / 1e6}), file=answers, flush=True)


def compare(script: str, names: list[str], args, device: torch.device, flops: float) -> list[dict]:
    """Measure ways of doing a thing, each in turn with the first of them and a matrix product.

    Args:
        script: serves the way that `--way` names.
        args: of the command line: `rounds`, `batch_size`, and what `shared_flags` takes.
        flops: operations that one way does.
    Returns:
        For each way but the first what was measured, by name.
    """
    from tqdm import tqdm

    rows, (baseline, *others) = [], names
    for name in tqdm(others, desc=os.path.basename(script), unit="way"):
        kind = "bfloat16" if "amp" in name else "float32"
        product, product_flops = matrix_rate(device, getattr(torch, kind))
        with (Process(script, "--way", baseline, *shared_flags(args)) as plain,
              Process(script, "--way", name, *shared_flags(args)) as ours):
            times = in_turn({"baseline": plain.run, "ours": ours.run, "product": timed(product, device)}, args.rounds)
        seconds, plain_seconds = (statistics.median(times[who]) for who in ("ours", "baseline"))
        rows.append({
            "way": name, "milliseconds": 1e3 * seconds, "baseline_milliseconds": 1e3 * plain_seconds,
            "samples_per_second": args.batch_size / seconds, "times_as_fast": ratio(times["baseline"], times["ours"]),
            "tflops": flops / seconds / 1e12, "matrix_product": kind,
            "of_matrix_rate": flops / product_flops * ratio(times["product"], times["ours"]), "peak_mb": ours.peak_mb,
            "baseline_peak_mb": plain.peak_mb, "of_baseline_memory": ours.peak_mb / plain.peak_mb, "seconds": times})
    return rows


def print_comparison(title: str, rows: list[dict]) -> None:
    """The rows of `compare` as a table; the baseline's own columns say `before`."""
    print_table(title, ["", "ms", "before", "times as fast", "samples/s", "GFLOP/s", "of matrix rate", "peak MB",
                        "before", "ratio"],
                [[row["way"], row["milliseconds"], row["baseline_milliseconds"], row["times_as_fast"],
                  row["samples_per_second"], 1e3 * row["tflops"], row["of_matrix_rate"], row["peak_mb"],
                  row["baseline_peak_mb"], row["of_baseline_memory"]] for row in rows])


def add_shared_flags(parser) -> None:
    """Add what the two benchmarks of the model have in common."""
    parser.add_argument("--shape", choices=["readme", "demo"], default="demo",
                        help="sizes of the published recipe, or of make demo")
    parser.add_argument("-b", "--batch-size", type=at_least(1), help="default: 1 for readme, 8 for demo")
    parser.add_argument("--img_size", type=image_size, help="default: 480 for readme, 96 for demo")
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="repeats of each measurement")
    parser.add_argument("--times", type=at_least(1), default=1,
                        help="how often a measurement does its thing; more where that takes milliseconds, as on a GPU")
    parser.add_argument("--profile", metavar="DIR", help="write profiler traces and a picture of time by part there")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    for flag in ("--way", "--parts"):
        parser.add_argument(flag, help=argparse.SUPPRESS)  # in a process of its own: serve this way, or its parts
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)  # of the parts


def complete(args) -> torch.device:
    """Fill in what the command line leaves to the shape; the device."""
    args.batch_size = args.batch_size or SHAPES[args.shape].batch_size
    args.img_size = args.img_size or SHAPES[args.shape].img_size
    return select_device(args.device)


def shared_flags(args) -> list[str]:
    """The command line for another process of the same benchmark."""
    return ["--shape", args.shape, "-b", str(args.batch_size), "--img_size", str(args.img_size),
            "--device", args.device, "--rounds", str(args.rounds), "--times", str(args.times)]


def fast_enough(names: list[str], device: torch.device) -> list[str]:
    """Without those that compute in bfloat16 where that is slow."""
    if not is_slow(device, torch.bfloat16):
        return names
    print("bfloat16 is slow here, so --amp is not measured")
    return [name for name in names if "amp" not in name]


def machine(device: torch.device) -> dict[str, str]:
    """Where and when, for the record."""
    cpu = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    return {"device": describe(device), "cpu": f"{os.cpu_count()} x {cpu}", "torch": torch.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}


def save(report: dict, path: str | None) -> None:
    """Write everything that was measured to a JSON file, if there is to be one."""
    if path:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
