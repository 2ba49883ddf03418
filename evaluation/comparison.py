"""Two evaluations of the same samples: reading what `test.py` wrote, and intervals of their differences."""
import json
import os
import re
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import InputError, UsageError
from utils.numeric import is_finite
from utils.spreadsheet import from_cell
from utils.text import counted, first_line, printable, printable_value

from .bootstrap import paired_intervals
from .ratios import Ratios, segmentation_ratios, share_of_defined

KEYS = ["index", "image_name"]  # what tells samples apart
TEXT = ["image_name", "question", "picture"]
COLUMNS = ["question", "iou", "intersection", "union"]
TOLERANCE = 0.01  # percent, by which the mIoU of the two files of a run may differ through rounding


def read_run(path: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """One evaluation.

    Args:
        path: its `metrics.json`, or the folder with it; `per_sample.csv` lies beside.
    Returns:
        The content of `metrics.json`, and that of `per_sample.csv`, indexed by KEYS and sorted.
    Raises:
        UsageError: a file is missing.
        InputError: one cannot be read, or they are not of the same run.
    """
    path = os.path.join(path, "metrics.json") if os.path.isdir(path) else path
    samples_path = os.path.join(os.path.dirname(path), "per_sample.csv")
    for name in (path, samples_path):
        if not os.path.isfile(name):
            raise UsageError(f"there is no {printable(name)!r}; test.py writes metrics.json and per_sample.csv to its "
                             "output folder")
    metrics, samples = _read_metrics(path), _read_samples(samples_path)
    found, miou, count = 100 * samples["iou"].mean(), metrics["mIoU"], metrics["num_samples"]
    if len(samples) != count or abs(found - miou) > TOLERANCE:
        raise InputError(f"{samples_path} and {path} are not of the same run: {counted(len(samples), 'sample')} of "
                         f"mIoU {found:.2f}, and {count} of {miou:.2f}")
    return metrics, samples


def _read_metrics(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            metrics = json.load(file, parse_constant=_refuse_constant)
        if not isinstance(metrics, dict):
            raise ValueError("it holds no table of metrics")
        for name in ("mIoU", "num_samples"):
            if name not in metrics:
                raise ValueError(f"{name} is absent")
        for name in ("settings", "fusion_metrics"):
            if not isinstance(metrics.get(name, {}), dict):
                raise ValueError(f"{name} is no table")
        _check_numbers(metrics)
        fused = metrics.get("fusion_metrics", {}).get("fused", {})
        if not isinstance(fused, dict):
            raise ValueError("fusion_metrics: fused is no table")
        _check_numbers(fused)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not what test.py writes ({printable(first_line(error))})") from error
    return metrics


def _refuse_constant(name: str):
    raise ValueError(f"it holds {name}, which is no number")


def _check_numbers(values: dict[str, Any]) -> None:
    """Check what is named like a metric: it must be a finite number, or None, which means undefined."""
    for name, value in values.items():
        if isinstance(value, dict) or (value is None and name not in ("mIoU", "num_samples")):
            continue
        kinds = int if name.startswith("num_") else int | float
        if not isinstance(value, kinds) or not is_finite(value):
            raise ValueError(f"{name} is {printable_value(value, 40)}, not a number")
        threshold = name.partition("@")[2]
        if "@" in name and not (re.fullmatch(r"\d*\.?\d+(e-?\d+)?", threshold) and 0 <= float(threshold) <= 1):
            raise ValueError(f"{name} has no threshold between 0 and 1")


def _read_samples(path: str) -> pd.DataFrame:
    try:
        samples = pd.read_csv(path, dtype=str, keep_default_na=False)  # an image may be called `NA`
        texts = [name for name in TEXT if name in samples]
        samples[texts] = samples[texts].map(from_cell)
        numbers = samples.columns.drop(texts)
        samples[numbers] = samples[numbers].apply(pd.to_numeric)
        samples = samples.set_index(KEYS).sort_index()
        order = [*COLUMNS, *numbers.drop(["index", *COLUMNS[1:]]), *texts[2:]]
        samples = samples[order]
        if not len(samples):
            raise ValueError("it has no rows")
        if not samples.index.is_unique:
            raise ValueError("a sample is in it twice")
        iou, intersection, union = (samples[name].to_numpy(float) for name in COLUMNS[1:])
        if not (np.isfinite([iou, intersection, union]).all() and (iou >= 0).all() and (iou <= 1).all()
                and (intersection >= 0).all() and (intersection <= union).all()):
            raise ValueError("an IoU or a number of pixels is out of range")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not what test.py writes ({printable(first_line(error))})") from error
    return samples


def check_same(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> None:
    """Check that two indexed tables are about the same samples.

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
        f"image '{printable(image)}'; evaluate both on the same rows")


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of a `metrics.json` that can stand in one column, those of the fused image among them."""
    fused = metrics.get("fusion_metrics", {}).get("fused", {})
    return {name: value for name, value in (metrics | fused).items() if isinstance(value, float)}


def changed_settings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The settings that differ between two `metrics.json`, as `img_size 480 → 96`."""
    a, b = a.get("settings", {}), b.get("settings", {})
    return [f"{printable(name)} {printable(value)} → {printable(b[name])}" for name, value in a.items()
            if name in b and b[name] != value]


def image_ids(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series | pd.Index:
    """What tells the images of the samples apart: the content where a file holds it, else the name."""
    for samples in (a, b):
        if "picture" in samples:
            return samples["picture"]
    return a.index.get_level_values("image_name")


def gains(a: pd.DataFrame, b: pd.DataFrame, names: list[str], seed: int) -> dict[str, tuple[float, float, float]]:
    """95% intervals of B − A and p-values, by the name of the figure; see `bootstrap.paired_intervals`.

    Args:
        names: of the figures that both runs have; those that the samples do not show are left out.
        seed: of the bootstrap.
    """
    thresholds = [float(name.partition("@")[2]) for name in names if "@" in name]
    more = [name for name in a.columns.drop([*COLUMNS, *TEXT], errors="ignore") if name in b.columns]
    return paired_intervals(*(_ratios(samples, thresholds, more) for samples in (a, b)), image_ids(a, b), seed)


def _ratios(samples: pd.DataFrame, thresholds: list[float], more: list[str]) -> Ratios:
    """The segmentation metrics in percent, and the columns `more` as they are."""
    parts = segmentation_ratios(samples["intersection"], samples["union"], thresholds)
    parts = {name: (100 * above, below) for name, (above, below) in parts.items()}
    return parts | {name: share_of_defined(samples[name].to_numpy(float)) for name in more}
