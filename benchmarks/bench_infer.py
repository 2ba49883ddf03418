"""How fast images are fused and segmented, beside the straightforward way.

    python benchmarks/bench_infer.py [--shape readme|demo] [-b N] [--device cpu] [--profile DIR] [--out FILE.json]
    python benchmarks/bench_infer.py --ckpt CHECKPOINT --parquet FILE     # how far --amp moves a trained model's masks

The rows build on each other up to `default`, which is what test.py and predict.py do; each is measured in turn with the
baseline (straightforward.py) and a matrix product. Medians over the rounds; memory is that of a process of its own.
"""
import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import run
from utils.flags import at_least, image_size

BASELINE = "straightforward"
VARIANTS = (BASELINE, "fused attention", "and batch norm folded, masks kept", "default", "amp", "torchcompile",
            "amp+torchcompile")


class Way:
    """A model as one of VARIANTS runs it, and a batch for it."""

    def __init__(self, name: str, shape: str, size: int, side: int, device):
        import torch
        from measure import make_batch, make_model
        from straightforward import straightforwardly

        from models import inference
        from utils.device import compile_mode

        self.model, self.device = make_model(shape, device).eval(), device
        if name not in VARIANTS[:2]:
            without = mock.patch.object(inference, "has_onednn", lambda device: False)
            with without if name == VARIANTS[2] else contextlib.nullcontext():
                inference.prepare_for_inference(self.model, device)
        self.caller = inference.Inference(self.model, amp_dtype=torch.bfloat16 if "amp" in name else None,
                                          compile_mode=compile_mode(device) if "compile" in name else None)
        self.context = straightforwardly if name == BASELINE else contextlib.nullcontext
        batch = make_batch(size, side, device)
        self.inputs = [batch[key] for key in ("vis", "ir", "input_ids", "attention_mask")]

    def run(self) -> None:
        import torch

        with torch.inference_mode(), self.context():
            self.caller(*self.inputs)


def measure(args: argparse.Namespace, device, flops: float) -> list[dict]:
    """Each variant in turn with the baseline and the matrix products."""
    import torch
    from measure import apart, in_turn, matrix_rate, ratio
    from tqdm import tqdm

    where, rows = (args.shape, args.batch_size, args.img_size, device), []
    products = {kind: matrix_rate(device, getattr(torch, kind)) for kind in ("float32", "bfloat16")}
    variants = [name for name in VARIANTS[1:] if args.compile or "compile" not in name]
    memory = {name: apart(__file__, "--one", name, *shared_flags(args)) for name in (BASELINE, *variants)}
    baseline = Way(BASELINE, *where)
    for name in tqdm(variants, desc="infer", unit="variant"):
        way = Way(name, *where)
        times = in_turn({"baseline": baseline.run, "ours": way.run,
                         **{kind: product for kind, (product, _) in products.items()}}, device, args.rounds)
        del way
        gc.collect()
        seconds, kind = statistics.median(times["ours"]), "bfloat16" if "amp" in name else "float32"
        rows.append({
            "variant": name, "milliseconds": 1e3 * seconds,
            "baseline_milliseconds": 1e3 * statistics.median(times["baseline"]),
            "samples_per_second": args.batch_size / seconds, "times_as_fast": ratio(times["baseline"], times["ours"]),
            "tflops": flops / seconds / 1e12, "matrix_product": kind,
            "of_matrix_rate": flops / seconds / (products[kind][1] / statistics.median(times[kind])),
            "peak_mb": memory[name]["peak_mb"], "baseline_peak_mb": memory[BASELINE]["peak_mb"], "seconds": times})
    return rows


def one(args: argparse.Namespace, device) -> None:
    """In a process of its own: two passes, and the most memory they took."""
    from utils.device import peak_memory

    way = Way(args.one, args.shape, args.batch_size, args.img_size, device)
    way.run()
    way.run()
    print(json.dumps({"peak_mb": peak_memory(device) / 1e6}))


def by_part(args: argparse.Namespace, device) -> dict[str, dict[str, float]]:
    """Milliseconds by network, waiting for the device in between."""
    from measure import PartClock

    results = {}
    for name in (BASELINE, "default"):
        way = Way(name, args.shape, args.batch_size, args.img_size, device)
        way.run()
        clock = PartClock(way.model, device)
        for _ in range(args.rounds):
            way.run()
        results[name] = {part: 1e3 * seconds / args.rounds for part, seconds in clock.forward.items()}
        del way
        gc.collect()
    return results


def sentences(args: argparse.Namespace, device) -> dict[str, float]:
    """Milliseconds of the first sentence about a pair, and of one more."""
    import torch
    from measure import in_turn

    way = Way("default", args.shape, args.batch_size, args.img_size, device)
    vis, ir, ids, mask = way.inputs
    with torch.inference_mode():
        pair = way.model.encode_pair(vis, ir)
        times = in_turn({"first": way.run, "one more": lambda: way.model.answer(pair, ids, mask)}, device, args.rounds)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def agreement(args: argparse.Namespace, device) -> dict[str, float]:
    """IoU of the masks with --amp and without, over the first rows of a parquet file."""
    import torch

    from bert import Tokenizer
    from data import MMRISDataset, collate
    from models import build_from_checkpoint
    from models.inference import Inference, prepare_for_inference
    from utils import checkpoint
    from utils.flags import resolve

    content = checkpoint.read(args.ckpt, "--ckpt")
    stored = argparse.Namespace()
    resolve(stored, checkpoint.stored_args(content))
    model = prepare_for_inference(build_from_checkpoint(content, args.ckpt, stored.ck_bert, stored.mha), device)
    dataset = MMRISDataset(args.parquet, Tokenizer(stored.bert_tokenizer), stored.img_size)
    both, either, ious = 0, 0, []
    for start in range(0, min(len(dataset), args.rows), 8):
        batch = collate([dataset[row] for row in range(start, min(start + 8, len(dataset), args.rows))])
        inputs = [batch[name].to(device) for name in ("vis", "ir", "input_ids", "attention_mask")]
        with torch.inference_mode():
            full, half = (Inference(model, amp_dtype=dtype)(*inputs).logits.argmax(1).bool().flatten(1)
                          for dtype in (None, torch.bfloat16))
        intersection, union = (full & half).sum(1), (full | half).sum(1)
        both, either = both + int(intersection.sum()), either + int(union.sum())
        ious += (intersection / union)[union > 0].tolist()
    return {"rows": min(len(dataset), args.rows), "overall_iou": both / either, "mean_iou": statistics.mean(ious)}


def shared_flags(args: argparse.Namespace) -> list[str]:
    return ["--shape", args.shape, "-b", str(args.batch_size), "--img_size", str(args.img_size),
            "--device", args.device]


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["readme", "demo"], default="demo",
                        help="sizes of the published recipe, or of make demo")
    parser.add_argument("-b", "--batch-size", type=at_least(1), default=1)
    parser.add_argument("--img_size", type=image_size, help="default: 480 for readme, 96 for demo")
    parser.add_argument("--device", default="cpu", help="auto, cuda, npu or cpu")
    parser.add_argument("--rounds", type=at_least(1), default=9, help="repeats of each measurement")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too; takes minutes more")
    parser.add_argument("--profile", metavar="DIR", help="write profiler traces and a picture of time by part there")
    parser.add_argument("--ckpt", help="compare this checkpoint's masks with --amp and without, and nothing else")
    parser.add_argument("--parquet", help="on the rows of this file")
    parser.add_argument("--rows", type=at_least(1), default=160, help="at most so many")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if bool(args.ckpt) != bool(args.parquet):
        parser.error("--ckpt and --parquet go together")

    from measure import SHAPES, forward_flops, machine, print_table, save, write_profile

    from utils.device import select_device

    args.img_size = args.img_size or SHAPES[args.shape].img_size
    device = select_device(args.device)
    if args.one:
        one(args, device)
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
    report["passes"] = measure(args, device, args.batch_size * flops["total"])
    print_table(f"A forward pass, {args.shape} sizes, {args.img_size} px, batch {args.batch_size}: "
                f"{flops['total'] / 1e9:.1f} GFLOP a sample",
                ["", "ms", "straightforward", "times as fast", "samples/s", "GFLOP/s", "of matrix rate", "peak MB",
                 "straightforward"],
                [[row["variant"], row["milliseconds"], row["baseline_milliseconds"], row["times_as_fast"],
                  row["samples_per_second"], 1e3 * row["tflops"], row["of_matrix_rate"], row["peak_mb"],
                  row["baseline_peak_mb"]] for row in report["passes"]])
    report["parts"] = parts = by_part(args, device)
    print_table("Milliseconds by part", ["", *parts],
                [[name, *(times[name] for times in parts.values())] for name in parts[BASELINE]])
    report["sentences"] = sentences(args, device)
    print("\nSentences about one pair: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in report["sentences"].items()))
    report["help_seconds"] = help_seconds()
    print(f"test.py --help: {report['help_seconds']:.2f} s of CPU time")
    if args.profile:
        where = (args.shape, args.batch_size, args.img_size, device)
        write_profile(args.profile, {name: Way(name, *where).run for name in (BASELINE, "default")}, parts)
    save(report, args.out)


if __name__ == "__main__":
    run(main)
