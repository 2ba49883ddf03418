"""What `checking.Checker` found: a summary for the terminal, a report for programs, a page to look at."""
import json
import os
from collections import Counter

import numpy as np

from bert import MAX_TOKENS
from utils.draw import contact_sheet, outlined
from utils.files import replacing
from utils.text import printable

from ..object_sizes import small_objects
from .checking import AREAS, Checker, DataSet
from .row_checks import ERROR

THUMBNAIL = 240  # pixels
BAR = 20  # characters for 100 %
PANELS = ("visible", "infrared", "object on visible", "object on infrared")


def write_report(path: str, checker: Checker) -> None:
    """Everything found, as JSON: `usable`, `sets` and `problems`."""
    report = {
        "usable": all(found.problem.severity != ERROR for found in checker.findings),
        "sets": [{
            "path": data.path, "files": data.files, "rows": data.rows, "unusable_rows": data.unusable,
            "rows_with_warnings": data.with_warnings, "has_index": data.has_index, "images": len(data.expressions),
            "expressions_per_image": histogram(data.expressions.values()),
            "words_per_expression": dict(sorted(data.words.items())),
            "visible_sizes": {f"{width}x{height}": count for (width, height), count in data.sizes.most_common()},
            "mask_area": {"upper_edges": AREAS, "rows": data.area_histogram(), "median": median_area(data)},
            "cut_sentences": data.cut_sentences,
        } for data in checker.sets],
        "problems": [{"file": found.file, "row": found.row, **found.problem._asdict()} for found in checker.findings],
    }
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)


def median_area(data: DataSet) -> float | None:
    """Of the objects' shares of their images, empty masks aside; None without any."""
    areas = np.asarray(data.areas)
    return float(np.median(areas[areas > 0])) if (areas > 0).any() else None


def write_sheet(path: str, samples: list) -> None:
    """The samples as a page: both images, and the object outlined on each."""
    rows = []
    for file, row, sentence, (visible, infrared, mask) in samples:
        rows.append((f"{printable(os.path.basename(file))}, row {row}: {printable(sentence)}",
                     [visible, infrared, outlined(visible, mask), outlined(infrared, mask)]))
    with replacing(path) as temporary:
        contact_sheet(rows, PANELS, THUMBNAIL).save(temporary, "PNG")


def histogram(values) -> dict[int, int]:
    """How often each value occurs, the smallest first."""
    return dict(sorted(Counter(values).items()))


def summary(sets: list[DataSet]) -> str:
    """A table with a column for each data set."""
    names = [printable(os.path.basename(os.path.normpath(data.path))) for data in sets]
    if len(set(names)) < len(names):
        names = [printable(data.path) for data in sets]
    lines = [("", names)]
    for label, value in (
        ("rows", lambda data: data.rows),
        ("unusable rows", lambda data: data.unusable),
        ("rows with warnings", lambda data: data.with_warnings),
        ("different images", lambda data: len(data.expressions)),
        ("index column", lambda data: "yes" if data.has_index else "no"),
        ("image width x height: smallest", lambda data: size_text(data.sizes, min)),
        ("  most common", lambda data: size_text(data.sizes, lambda sizes, key: data.sizes.most_common(1)[0][0])),
        ("  largest", lambda data: size_text(data.sizes, max)),
        ("expressions per image: fewest, mean, most", lambda data: spread(histogram(data.expressions.values()))),
        ("words per expression: fewest, mean, most", lambda data: spread(data.words)),
        (f"expressions cut at {MAX_TOKENS} word pieces", lambda data: data.cut_sentences),
        ("object's share of the image: empty mask", lambda data: bar(data.area_histogram()[0], data.rows)),
    ):
        cells = [value(data) for data in sets]
        if any(cell is not None for cell in cells):
            lines.append((label, ["-" if cell is None else str(cell) for cell in cells]))
    for number in range(1, len(AREAS)):
        label = f"  {100 * AREAS[number - 1]:g} to {100 * AREAS[number]:g} %"
        lines.append((label, [bar(data.area_histogram()[number], data.rows) for data in sets]))
    width = max(len(label) for label, _ in lines)
    widths = [max(len(cells[column]) for _, cells in lines) for column in range(len(sets))]
    return "\n".join("  ".join([f"{label:<{width}}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))])
                     for label, cells in lines)


def conclusions(sets: list[DataSet], img_size: int) -> list[str]:
    """What the statistics mean for training, a sentence for each data set that they say something about.

    Args:
        img_size: side of the networks' input in pixels.
    """
    return [f"{printable(data.path)}: {sentence}" for data in sets
            if (sentence := small_objects(data.areas, img_size))]


def size_text(sizes: dict, pick) -> str:
    """The size that `pick` takes from the sizes by their areas."""
    if not sizes:
        return "-"
    width, height = pick(sizes, key=lambda size: size[0] * size[1])
    return f"{width} x {height}"


def spread(counts: dict[int, int]) -> str:
    """Smallest, mean and largest of values, each of which occurs so many times."""
    if not counts:
        return "-"
    mean = sum(value * count for value, count in counts.items()) / sum(counts.values())
    return f"{min(counts)}, {mean:.1f}, {max(counts)}"


def bar(count: int, total: int) -> str:
    return f"{'#' * round(BAR * count / max(total, 1))} {count}"
