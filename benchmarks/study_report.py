"""What `study.py` makes of the evaluations of all trials: a table, a file of all figures, and a picture."""
import json
import os

import numpy as np
import pandas as pd
from measure import machine
from PIL import Image
from torch import device

from evaluation import bootstrap
from evaluation.comparison import image_ids, read_run
from evaluation.ratios import Ratios, segmentation_ratios, share_of_defined
from utils.files import file_stem, replacing

BASE = "joint"  # the variant that the others are compared with
FIGURES = ("mIoU", "oIoU", "Qabf", "VIF")
STEERING = ("mIoU swapped", "change inside", "change outside", "contrast", "contrast swapped", "contrast empty",
            "own larger")
DRAWN = {"mIoU": "mIoU, %", "Qabf": "Qabf", "VIF": "VIF",
         "change inside": "change by swapped sentences\ninside the object, of 255",
         "own larger": "contrast larger with\nown sentence, % of samples"}
DIGITS = {"Qabf": 3, "VIF": 3}  # after the point; 2 for the others
SCENES_SHOWN = 3
Trials = dict[str, dict[int, pd.DataFrame]]  # by variant and seed, what test.py wrote for each sample


def write_report(folders: dict[tuple[str, int], str], out: str) -> str:
    """Write `table.md`, `study.json` and `study.png` to the folder `out`, and return the table.

    Args:
        folders: by variant and seed, with the results of test.py. All variants have the same seeds, in the same order.
    """
    trials: Trials = {}
    for (variant, seed), folder in folders.items():
        _, trials.setdefault(variant, {})[seed] = read_run(folder)
    figures = {variant: summarise(of_seeds) for variant, of_seeds in trials.items()}
    gains = {variant: gains_over(trials[BASE], figures[BASE], of_seeds, figures[variant])
             for variant, of_seeds in trials.items() if BASE in trials and variant != BASE}
    table = make_table(figures, gains)
    with replacing(os.path.join(out, "table.md")) as path, open(path, "w", encoding="utf-8") as file:
        file.write(table)
    with replacing(os.path.join(out, "study.json")) as path, open(path, "w", encoding="utf-8") as file:
        json.dump({"machine": machine(device("cpu")), "figures": figures, f"minus {BASE}": gains}, file, indent=1)
    draw(figures, first_scenes(folders, trials), os.path.join(out, "study.png"))
    return table


def ratios(samples: pd.DataFrame) -> Ratios:
    """All figures of the study as ratios of sums over samples, in the units in which they are shown."""
    parts = {name: (100 * above, below) for name, (above, below) in
             segmentation_ratios(samples["intersection"], samples["union"], ()).items()}
    own, other = samples["contrast"], samples["contrast_swapped"]
    columns = {"Qabf": samples["Qabf"], "VIF": samples["VIF"], "mIoU swapped": 100 * samples["iou_swapped"],
               "change inside": samples["change_inside"], "change outside": samples["change_outside"],
               "contrast": own, "contrast swapped": other, "contrast empty": samples["contrast_empty"],
               "own larger": (100.0 * (own > other)).where(own.notna() & other.notna() & (own != other).any())}
    return parts | {name: share_of_defined(values.to_numpy(float)) for name, values in columns.items()}


def summarise(of_seeds: dict[int, pd.DataFrame]) -> dict[str, dict]:
    """For each figure its `mean` over seeds, the value `by_seed`, and a 95% interval over images (`interval_95`).

    Figures that are defined for no sample are left out.
    """
    by_seed = {seed: {name: float(above.sum() / below.sum()) for name, (above, below) in ratios(samples).items()
                      if below.any()} for seed, samples in of_seeds.items()}
    joined = pd.concat(of_seeds.values())
    ends = bootstrap.intervals(ratios(joined), image_ids(joined, joined), seed=0)
    return {name: {"mean": float(np.mean([values[name] for values in by_seed.values()])),
                   "by_seed": {seed: values[name] for seed, values in by_seed.items()},
                   "interval_95": list(interval)} for name, interval in ends.items()
            if all(name in values for values in by_seed.values())}


def gains_over(base: dict[int, pd.DataFrame], before: dict[str, dict], other: dict[int, pd.DataFrame],
               after: dict[str, dict]) -> dict[str, dict]:
    """`other` minus `base` for each figure that both have: `mean`, `by_seed`, `interval_95` and `p`.

    The interval is of the paired bootstrap over images, each with all its sentences and seeds.

    Args:
        base, other: samples by seed, the same seeds in the same order.
        before, after: what `summarise` makes of each.
    """
    a, b = pd.concat(base.values()), pd.concat(other.values())
    ends = bootstrap.paired_intervals(ratios(a), ratios(b), image_ids(a, b), seed=0)
    return {name: {"mean": after[name]["mean"] - before[name]["mean"],
                   "by_seed": {seed: after[name]["by_seed"][seed] - before[name]["by_seed"][seed] for seed in base},
                   "interval_95": [low, high], "p": p} for name, (low, high, p) in ends.items()
            if name in before and name in after}


def make_table(figures: dict[str, dict], gains: dict[str, dict]) -> str:
    """Markdown tables: segmentation and fusion, their differences from BASE, and the sentence's effect on the image."""
    differences = [f"minus {BASE}: {FIGURES[0]}", *FIGURES[1:]]
    parts = [_rows(FIGURES, FIGURES, figures, _spread), _rows(differences, FIGURES, gains, _gain),
             _rows(STEERING, STEERING, figures, _spread)]
    return "\n".join(part for part in parts if part)


def _rows(titles, names, values: dict[str, dict], show) -> str:
    """A Markdown table of the figures `names` of each variant, each as `show` writes it; empty without variants."""
    if not values:
        return ""
    lines = [f"| variant | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for variant, of in values.items():
        cells = [show(of[name], DIGITS.get(name, 2)) if name in of else "-" for name in names]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(figure: dict, digits: int) -> str:
    """The mean and, in parentheses, the smallest and the largest of the seeds."""
    values = figure["by_seed"].values()
    if not any(values):
        return "0"
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{figure['mean']:.{digits}f}{spread}"


def _gain(figure: dict, digits: int) -> str:
    low, high = figure["interval_95"]
    return f"{figure['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def first_scenes(folders: dict[tuple[str, int], str], trials: Trials) -> dict[str, list[tuple[str, np.ndarray]]]:
    """For each variant, with its first seed: sentence and fused image of the first samples of SCENES_SHOWN images."""
    scenes = {}
    for (variant, seed), folder in folders.items():
        if variant in scenes:
            continue
        samples = trials[variant][seed].reset_index().drop_duplicates("image_name").head(SCENES_SHOWN)
        scenes[variant] = []
        for index, name, sentence in samples[["index", "image_name", "question"]].itertuples(index=False):
            paths = [os.path.join(folder, "fusion", f"{file_stem(name)}{end}.jpg") for end in ("", f"_{index}")]
            picture = np.asarray(Image.open(next(path for path in paths if os.path.exists(path))))
            scenes[variant].append((sentence, picture))
    return scenes


def draw(figures: dict[str, dict], scenes: dict[str, list[tuple[str, np.ndarray]]], path: str) -> None:
    """Bars with 95% intervals and a dot for each seed; below, a column of fused images for each variant."""
    from matplotlib.figure import Figure

    names, count = list(figures), len(figures)
    page = Figure(figsize=(max(12, 1.7 * count), 9.5), layout="constrained")
    above, below = page.subfigures(2, 1, height_ratios=(1, 1.5))
    for axes, (figure, title) in zip(above.subplots(1, len(DRAWN)), DRAWN.items(), strict=True):
        for place, name in enumerate(names):
            if figure not in figures[name]:
                continue
            of = figures[name][figure]
            low, high = of["interval_95"]
            colour = "tab:blue" if name == BASE else "tab:orange" if name == "w_focus" else "tab:gray"
            axes.barh(place, of["mean"], color=colour, alpha=0.6)
            axes.plot([low, high], [place, place], "k-", linewidth=1)
            axes.plot(list(of["by_seed"].values()), [place] * len(of["by_seed"]), "k.", markersize=4)
        axes.set_yticks(range(count), names if figure == next(iter(DRAWN)) else [""] * count)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_title(title, fontsize=9)
    grid = below.subplots(SCENES_SHOWN, count, squeeze=False)
    for column, name in enumerate(names):
        grid[0, column].set_title(name, fontsize=9)
        for row, (sentence, picture) in enumerate(scenes[name]):
            grid[row, column].imshow(picture)
            if column == 0:
                grid[row, 0].set_ylabel(sentence, fontsize=7, wrap=True)
        for axes in grid[:, column]:
            axes.set_xticks([])
            axes.set_yticks([])
    with replacing(path) as temporary:
        page.savefig(temporary, format="png", dpi=110)
