"""How cost grows with the work: image size, batch, sentence length, sentences about one pair, rows in a file.

    python benchmarks/bench_scale.py [--shape readme|demo] [--device cpu] [--plot FILE.png] [--out FILE.json]

Each curve is fitted by cost ~ work^exponent, by least squares over the logarithms. Medians over the rounds.
"""
import argparse
import os
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from models import INPUTS
from utils.errors import run
from utils.flags import ArgumentParser, at_least

SIDES = (240, 360, 480, 720, 960)
BATCHES = (1, 2, 4, 8, 16, 32)
WORDS = (1, 2, 4, 8, 18)
SENTENCES = (1, 2, 4, 8)
ROWS = (1_000, 4_000, 16_000, 64_000)
BATCH_SIDE = 96  # of the images in the batches, so that 32 of them fit a small machine


def networks(args: argparse.Namespace, device) -> dict[str, dict[int, float]]:
    """Seconds of evaluation by what grows."""
    import torch
    from measure import in_turn, make_batch, make_model, timed
    from tqdm import tqdm

    from models.fast import prepare_for_inference

    model = prepare_for_inference(make_model(args.shape, device), device)

    def forward(size: int, side: int, words: int = 10):
        batch = make_batch(size, side, device, words)
        return lambda: model(*(batch[name] for name in INPUTS))

    def answers(count: int):
        batch = make_batch(1, args.img_size, device)

        def ask():
            pair = model.encode_pair(batch["vis"], batch["ir"])
            for _ in range(count):
                model.answer(pair, model.encode_text(batch["input_ids"], batch["attention_mask"]))
        return ask

    curves = {"side of the image, pixels": {side: forward(1, side) for side in args.sides},
              f"images in a batch, {BATCH_SIDE} px": {size: forward(size, BATCH_SIDE) for size in BATCHES},
              "words in the sentence": {words: forward(1, args.img_size, words) for words in WORDS},
              "sentences about one pair": {count: answers(count) for count in SENTENCES}}
    results = {}
    with torch.inference_mode():
        for what, ways in tqdm(curves.items(), desc="scale", unit="curve"):
            times = in_turn({work: timed(way, device) for work, way in ways.items()}, args.rounds)
            results[what] = {work: statistics.median(seconds) for work, seconds in times.items()}
    return results


def opening(rounds: int) -> dict[int, float]:
    """Seconds to open a file of so many rows, whose sentences are all tokenized."""
    import torch
    from bench_data import WORDS as VOCABULARY
    from bench_data import write_file
    from measure import in_turn, timed

    from bert import Tokenizer
    from bert.tiny import write_tiny_bert
    from data import MMRISDataset

    with tempfile.TemporaryDirectory() as folder:
        write_tiny_bert(folder, [" ".join(VOCABULARY)], hidden=16, layers=1, heads=1)
        tokenizer, ways = Tokenizer(folder), {}
        for rows in ROWS:
            path = os.path.join(folder, f"{rows}.parquet")
            write_file(path, 0, 16, rows, pictures=False)
            ways[rows] = timed(lambda path=path: MMRISDataset(path, tokenizer, 480), torch.device("cpu"))
        times = in_turn(ways, rounds)
    return {rows: statistics.median(seconds) for rows, seconds in times.items()}


def exponent(curve: dict[int, float]) -> float:
    """p of cost ~ work^p."""
    import numpy as np

    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def draw(curves: dict[str, dict[int, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 3), layout="constrained")
    for axis, (what, curve) in zip(axes, curves.items(), strict=True):
        axis.loglog(list(curve), list(curve.values()), "o-")
        axis.set_ylim(min(curve.values()) / 2, max(curve.values()) * 2)  # so that noise does not fill the picture
        axis.set_title(f"exponent {exponent(curve):.2f}", fontsize=10)
        axis.set_xlabel(what)
        axis.set_xticks(list(curve), [f"{work:,}" for work in curve], minor=False, fontsize=7)
        axis.minorticks_off()
        ends = sorted({min(curve.values()), max(curve.values())}) if exponent(curve) > 0.1 else [max(curve.values())]
        axis.set_yticks(ends, [f"{seconds:.2g}" for seconds in ends])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["readme", "demo"], default="demo",
                        help="sizes of the published recipe, or of make demo")
    parser.add_argument("--sides", nargs="+", type=at_least(33), default=SIDES, metavar="PIXELS")
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="repeats of each measurement")
    parser.add_argument("--plot", help="draw the curves into this PNG file")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    args = parser.parse_args()

    from measure import SHAPES, machine, print_table, save

    from utils.device import select_device

    args.img_size = SHAPES[args.shape].img_size
    device = select_device(args.device)
    report = {"machine": machine(device), "shape": args.shape}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    curves = networks(args, device) | {"rows in the file (opening it)": opening(args.rounds)}
    report["seconds"], report["exponents"] = curves, {what: exponent(curve) for what, curve in curves.items()}
    for what, curve in curves.items():
        print_table(f"{what}: exponent {exponent(curve):.2f}", ["", *(f"{work:,}" for work in curve)],
                    [["ms", *(1e3 * seconds for seconds in curve.values())]])
    if args.plot:
        draw(curves, args.plot)
    save(report, args.out)


if __name__ == "__main__":
    run(main)
