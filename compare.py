"""Compare two evaluations of the same samples: side by side, with paired bootstrap p-values."""
import argparse

from utils.errors import run
from utils.flags import ArgumentParser, seed
from utils.text import counted, printable


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("a", metavar="A", help="metrics.json of one run of test.py, or its folder; per_sample.csv "
                                               "must lie beside it")
    parser.add_argument("b", metavar="B", help="likewise, of the other run")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the bootstrap")
    return parser


def main() -> None:
    args = build_parser().parse_args()

    from evaluation import bootstrap, comparison  # after the command line is known to be good: pandas takes a second

    (metrics_a, a), (metrics_b, b) = comparison.read_run(args.a), comparison.read_run(args.b)
    comparison.check_same(a, b, (args.a, args.b))
    values_a, values_b = comparison.figures(metrics_a), comparison.figures(metrics_b)
    names = [name for name in values_a if name in values_b]
    found = comparison.gains(a, b, names, args.seed)

    print(f"A  {args.a}\nB  {args.b}")
    print(f"{counted(len(a), 'sample')} of {counted(comparison.image_ids(a, b).nunique(), 'image')}")
    if other := (a["question"] != b["question"]).sum():
        print(f"note: {other} of them have another sentence in B than in A")
    if changes := comparison.changed_settings(metrics_a, metrics_b):
        print(f"note: other settings in B than in A: {', '.join(changes)}")
    print(f"\n{'':<14}{'A':>9}{'B':>9}{'B - A':>9}  {'95% interval':<18}{'p':>7}")
    for name in names:
        line = (f"{printable(name):<14}{values_a[name]:>9.3f}{values_b[name]:>9.3f}"
                f"{values_b[name] - values_a[name]:>9.3f}")
        if name in found:
            low, high, p = found[name]
            line += f"  {f'[{low:.3f}, {high:.3f}]':<18}{'<0.001' if p < 0.001 else f'{p:.3f}':>7}"
        print(line)
    print(f"p: two-sided, paired bootstrap, {bootstrap.PAIRED_RESAMPLES} resamples of images, each with all its "
          "sentences")


if __name__ == "__main__":
    run(main)
