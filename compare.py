"""Compare two evaluations of the same samples: side by side, with paired bootstrap p-values."""
import argparse
import json
import os

from utils.errors import InputError, UsageError, run
from utils.flags import ArgumentParser, at_least
from utils.text import counted

KEYS = ["index", "image_name"]  # what tells samples apart
COLUMNS = ["question", "iou", "intersection", "union"]
TOLERANCE = 0.01  # percent, by which the mIoU of the two files of a run may differ: only a rounding


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("a", metavar="A", help="metrics.json of one run of test.py, or its folder; per_sample.csv "
                                               "must lie beside it")
    parser.add_argument("b", metavar="B", help="likewise, of the other run")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the bootstrap")
    return parser


def read_run(path: str):
    """One evaluation.

    Args:
        path: its `metrics.json`, or the folder with it; `per_sample.csv` lies beside.
    Returns:
        The content of `metrics.json` (dict), and that of `per_sample.csv` (DataFrame, indexed by KEYS, sorted).
    Raises:
        UsageError: a file is missing.
        InputError: one cannot be read, or they are not of the same run.
    """
    import pandas as pd

    path = os.path.join(path, "metrics.json") if os.path.isdir(path) else path
    table = os.path.join(os.path.dirname(path), "per_sample.csv")
    for name in (path, table):
        if not os.path.isfile(name):
            raise UsageError(f"there is no {name!r}; test.py writes metrics.json and per_sample.csv to its --out_dir")
    try:
        with open(path, encoding="utf-8") as file:
            metrics = json.load(file)
        miou, count = float(metrics["mIoU"]), int(metrics["num_samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what test.py writes ({error!r})") from error
    try:
        samples = pd.read_csv(table, dtype=str, keep_default_na=False)  # an image may be called `NA`
        numbers = samples.columns.drop(["image_name", "question"])
        samples[numbers] = samples[numbers].apply(pd.to_numeric)
        samples = samples.set_index(KEYS).sort_index()[[*COLUMNS, *numbers.drop(["index", *COLUMNS[1:]])]]
        if not samples.index.is_unique:
            raise ValueError("a sample is in it twice")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{table} is not what test.py writes ({str(error).splitlines()[0]})") from error
    found = 100 * samples["iou"].mean()
    if len(samples) != count or abs(found - miou) > TOLERANCE:
        raise InputError(f"{table} and {path} are not of the same run: {counted(len(samples), 'sample')} of mIoU "
                         f"{found:.2f}, and {count} of {miou:.2f}")
    return metrics, samples


def check_same(a, b, names: tuple[str, str]) -> None:
    """Check that two indexed tables of samples are of the same ones.

    Raises:
        InputError: says how many are not in both, and names one.
    """
    lone = [left.index.difference(right.index) for left, right in ((a, b), (b, a))]
    if not len(lone[0]) and not len(lone[1]):
        return
    index, image = (lone[0] if len(lone[0]) else lone[1])[0]
    raise InputError(
        f"{names[0]} and {names[1]} are not of the same samples and cannot be compared in pairs: {len(lone[0])} of "
        f"{len(a)} are only in the first, {len(lone[1])} of {len(b)} only in the second, such as index {index} of "
        f"image {image!r}; evaluate both with the same --test_parquet and --limit")


def ratios(samples, thresholds: list[float], more: list[str]) -> dict:
    """What `evaluation.bootstrap` draws from: the segmentation metrics in percent, the columns `more` as they are."""
    import numpy as np

    from evaluation.bootstrap import segmentation_ratios

    parts = segmentation_ratios(samples["intersection"], samples["union"], thresholds)
    parts = {name: (100 * above, below) for name, (above, below) in parts.items()}
    for name in more:
        values = samples[name].to_numpy(float)
        parts[name] = (np.nan_to_num(values), np.isfinite(values).astype(float))  # not defined on every image
    return parts


def flat(metrics: dict) -> dict[str, float]:
    """The figures of a `metrics.json` that can stand in one column, those of the fused image among them."""
    fused = metrics.get("fusion_metrics", {}).get("fused", {})
    return {name: value for name, value in (metrics | fused).items() if isinstance(value, float)}


def differences(a: dict, b: dict) -> list[str]:
    """Which settings two `metrics.json` say to be different, as `img_size 480 → 96`."""
    a, b = a.get("settings", {}), b.get("settings", {})
    return [f"{name} {value} → {b[name]}" for name, value in a.items() if name in b and b[name] != value]


def main() -> None:
    args = build_parser().parse_args()
    (metrics_a, a), (metrics_b, b) = read_run(args.a), read_run(args.b)
    check_same(a, b, (args.a, args.b))

    from evaluation.bootstrap import compare

    values_a, values_b = flat(metrics_a), flat(metrics_b)
    thresholds = [float(name.split("@")[1]) for name in values_a if "@" in name and name in values_b]
    more = [name for name in a.columns.drop(COLUMNS) if name in b.columns]
    images = a.index.get_level_values("image_name")
    found = compare(ratios(a, thresholds, more), ratios(b, thresholds, more), images, args.seed)

    print(f"A  {args.a}\nB  {args.b}\n{counted(len(a), 'sample')} of {counted(images.nunique(), 'image')}")
    if other := (a["question"] != b["question"]).sum():
        print(f"note: {other} of them have another sentence in B than in A")
    if changes := differences(metrics_a, metrics_b):
        print(f"note: other settings in B than in A: {', '.join(changes)}")
    print(f"\n{'':<14}{'A':>9}{'B':>9}{'B - A':>9}  {'95% interval':<18}{'p':>7}")
    for name in (name for name in values_a if name in values_b):
        line = f"{name:<14}{values_a[name]:>9.3f}{values_b[name]:>9.3f}{values_b[name] - values_a[name]:>9.3f}"
        if name in found:
            low, high, p = found[name]
            line += f"  {f'[{low:.3f}, {high:.3f}]':<18}{'<0.001' if p < 0.001 else f'{p:.3f}':>7}"
        print(line)
    print("p: two-sided, paired bootstrap, 10000 resamples of images, each with all its sentences")


if __name__ == "__main__":
    run(main)
