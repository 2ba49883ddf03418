"""How fast a training step is, and how much memory it takes, beside the straightforward way.

    python benchmarks/bench_train.py [--shape readme|demo] [-b N] [--device cpu] [--profile DIR] [--out FILE.json]

Every row is measured in turn with the baseline (straightforward.py), so its ratio holds although the machine may be
busy: medians over the rounds. Peak memory is that of a process of its own.
"""
import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import sys
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import run
from utils.flags import at_least, image_size

VARIANTS = {  # flags of train_with_lavt.py
    "default": {},
    "channels-last": {"channels_last": True},
    "grad-checkpointing": {"grad_checkpointing": True},
    "amp": {"amp": True},
    "amp+channels-last": {"amp": True, "channels_last": True},
    "torchcompile": {"torchcompile": True},
    "amp+channels-last+torchcompile": {"amp": True, "channels_last": True, "torchcompile": True},
}
BASELINE = "straightforward"


class Straightforward:
    """The baseline: losses read and garbage collected in every step, AdamW as PyTorch has it by default."""

    def __init__(self, shape: str, size: int, side: int, device, **_flags):
        import torch
        from measure import SHAPES, make_batch, make_model

        from models import build_criterion

        self.model, self.device = make_model(shape, device).train(), device
        self.criterion = build_criterion(SHAPES[shape])
        self.batch = make_batch(size, side, device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.parts: dict[str, float] = {}

    def step(self, mark=lambda part: None) -> None:
        """One step; `mark` is called at the end of each of its parts."""
        import torch
        from straightforward import straightforwardly

        batch = self.batch
        with straightforwardly():
            output = self.model(batch["vis"], batch["ir"], batch["input_ids"], batch["attention_mask"])
            loss, terms = self.criterion(output, batch["vis"], batch["ir"], batch["target"])
            mark("forward")
            self.optimizer.zero_grad()
            loss.backward()
        mark("backward")
        self.optimizer.step()
        for term in terms.values():
            term.item()
        gc.collect()
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()
        mark("optimizer and the rest")


class Ours:
    """`engine.train_one_epoch`, as train_with_lavt.py calls it."""

    def __init__(self, shape: str, size: int, side: int, device, *, amp=False, channels_last=False,
                 grad_checkpointing=False, torchcompile=False):
        import torch
        from measure import SHAPES, make_batch, make_model

        from models import build_criterion
        from train_with_lavt import build_optimizer, trainable
        from utils.device import grad_scaler, return_freed_memory

        model = make_model(shape, device).train()
        model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        if grad_checkpointing:
            model.recompute_activations()
            return_freed_memory(device)
        if torchcompile:
            model.compile()
        self.model, self.device = model, device
        self.criterion = build_criterion(SHAPES[shape]).to(device)
        batch = make_batch(size, side, torch.device("cpu"))
        self.batch = batch | {"row": torch.arange(size)}
        args = SimpleNamespace(lr_seg=1e-5, lr_pf=1e-5, wd_seg=1e-2, wd_pf=1e-2, amsgrad=False)
        self.optimizer = build_optimizer(args, model, device)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.networks = trainable(model)
        self.dtype = torch.bfloat16 if amp else None
        self.scaler = grad_scaler(device, self.dtype)

    def step(self) -> None:
        from engine import Progress, train_one_epoch

        never = SimpleNamespace(due=lambda: 0)
        with contextlib.redirect_stdout(io.StringIO()):
            train_one_epoch(self.model, self.criterion, [self.batch], self.optimizer, self.scheduler, self.scaler,
                            self.device, Progress(), never, networks=self.networks, dtype=self.dtype)


def make(name: str, *where):
    return Straightforward(*where) if name == BASELINE else Ours(*where, **VARIANTS[name])


def measure(args: argparse.Namespace, device, flops: float) -> list[dict]:
    """Each variant in turn with the baseline and a matrix product."""
    import torch
    from measure import apart, in_turn, matrix_rate, ratio
    from tqdm import tqdm

    where = (args.shape, args.batch_size, args.img_size, device)
    product, product_flops = matrix_rate(device, torch.float32)
    half, _ = matrix_rate(device, torch.bfloat16)
    baseline, rows = make(BASELINE, *where), []
    memory = {name: apart(__file__, "--one", name, *shared_flags(args)) for name in (BASELINE, *args.variants)}
    for name in tqdm(args.variants, desc="train", unit="variant"):
        ours = make(name, *where)
        times = in_turn({"baseline": baseline.step, "ours": ours.step, "float32": product, "bfloat16": half}, device,
                        args.rounds)
        del ours
        gc.collect()
        seconds = statistics.median(times["ours"])
        kind = "bfloat16" if "amp" in name else "float32"
        rows.append({
            "variant": name, "milliseconds": 1e3 * seconds, "baseline_milliseconds": 1e3 * statistics.median(
                times["baseline"]), "samples_per_second": args.batch_size / seconds,
            "times_as_fast": ratio(times["baseline"], times["ours"]),
            "tflops": flops / seconds / 1e12, "matrix_product": kind,
            "of_matrix_rate": flops / seconds / (product_flops / statistics.median(times[kind])),
            "peak_mb": memory[name]["peak_mb"], "of_baseline_memory":
                memory[name]["peak_mb"] / memory[BASELINE]["peak_mb"], "baseline_peak_mb": memory[BASELINE]["peak_mb"],
            "seconds": times})
    return rows


def one(args: argparse.Namespace, device) -> None:
    """In a process of its own: two steps, and the most memory they took."""
    from utils.device import peak_memory

    variant = make(args.one, args.shape, args.batch_size, args.img_size, device)
    before = peak_memory(device)
    for _ in range(2):
        variant.step()
    print(json.dumps({"peak_mb": peak_memory(device) / 1e6, "before_mb": before / 1e6}))


def by_part(args: argparse.Namespace, device) -> dict[str, dict[str, float]]:
    """Milliseconds of forward and backward pass by network, waiting for the device in between."""
    from measure import PartClock

    results = {}
    for name in (BASELINE, "default"):
        variant = make(name, args.shape, args.batch_size, args.img_size, device)
        variant.step()
        clock = PartClock(variant.model, device)
        backward = variant.optimizer.step

        def step(*inputs, clock=clock, backward=backward, **named):
            clock.enter("optimizer")
            result = backward(*inputs, **named)
            clock.leave()
            return result

        criterion = variant.criterion.forward

        def losses(*inputs, clock=clock, criterion=criterion):
            start = clock.now()
            result = criterion(*inputs)
            clock.forward["losses"] = clock.forward.get("losses", 0.0) + clock.now() - start
            clock.enter("losses")
            return result

        variant.optimizer.step, variant.criterion.forward = step, losses
        for _ in range(args.rounds):
            variant.step()
        results[name] = {kind: {part: 1e3 * seconds / args.rounds for part, seconds in times.items()}
                         for kind, times in (("forward", clock.forward), ("backward", clock.backward))}
        del variant
        gc.collect()
    return results


def shared_flags(args: argparse.Namespace) -> list[str]:
    return ["--shape", args.shape, "-b", str(args.batch_size), "--img_size", str(args.img_size),
            "--device", args.device]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["readme", "demo"], default="demo",
                        help="sizes of the published recipe, or of make demo")
    parser.add_argument("-b", "--batch-size", type=at_least(1), help="default: 1 for readme, 8 for demo")
    parser.add_argument("--img_size", type=image_size, help="default: 480 for readme, 96 for demo")
    parser.add_argument("--device", default="cpu", help="auto, cuda, npu or cpu")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="repeats of each measurement")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="VARIANT",
                        default=["default", "channels-last", "grad-checkpointing", "amp", "amp+channels-last"],
                        help=f"which of: {', '.join(VARIANTS)}")
    parser.add_argument("--profile", metavar="DIR", help="write profiler traces and a picture of time by part there")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()

    from measure import SHAPES, forward_flops, machine, print_table, save, write_profile

    from utils.device import select_device

    args.batch_size = args.batch_size or SHAPES[args.shape].batch_size
    args.img_size = args.img_size or SHAPES[args.shape].img_size
    device = select_device(args.device)
    if args.one:
        one(args, device)
        return
    report = {"machine": machine(device), "shape": vars(SHAPES[args.shape]) | {
        "batch_size": args.batch_size, "img_size": args.img_size}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    flops = forward_flops(args.shape, args.img_size)
    report["forward_flops"] = flops
    report["steps"] = measure(args, device, 3 * args.batch_size * flops["total"])
    print_table(f"A training step, {args.shape} sizes, {args.img_size} px, batch {args.batch_size}; forward pass "
                f"{flops['total'] / 1e9:.1f} GFLOP a sample, step three times that",
                ["", "ms", "straightforward", "times as fast", "samples/s", "GFLOP/s", "of matrix rate", "peak MB",
                 "straightforward", "ratio"],
                [[row["variant"], row["milliseconds"], row["baseline_milliseconds"], row["times_as_fast"],
                  row["samples_per_second"], 1e3 * row["tflops"], row["of_matrix_rate"], row["peak_mb"],
                  row["baseline_peak_mb"], row["of_baseline_memory"]] for row in report["steps"]])
    report["parts"] = parts = by_part(args, device)
    names = list(dict.fromkeys(name for kinds in parts.values() for times in kinds.values() for name in times))
    print_table("Milliseconds by part", ["", *(f"{who}: {kind}" for who in parts for kind in ("forward", "backward"))],
                [[name, *(parts[who][kind].get(name, 0.0) for who in parts for kind in ("forward", "backward"))]
                 for name in names])
    if args.profile:
        write_profile(args.profile, {name: make(name, args.shape, args.batch_size, args.img_size, device).step
                                     for name in (BASELINE, "default")},
                      {who: {f"{name}, {kind}": ms for kind, times in kinds.items() for name, ms in times.items()}
                       for who, kinds in parts.items()})
    save(report, args.out)


if __name__ == "__main__":
    run(main)
