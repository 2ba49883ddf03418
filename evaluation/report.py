"""report.html: an evaluation on one page that needs neither other files nor a network."""
import base64
import io
import os

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.draw import TITLES, resize
from utils.files import replacing

LONGEST_SIDE = 360  # of a picture, pixels
LONGEST_SENTENCE = 300  # characters
BINS = 20
EACH = 3  # samples among the best, the median and the worst


def pick_samples(iou: np.ndarray, rows: np.ndarray, each: int = EACH) -> dict[str, list[int]]:
    """The rows to show: best, around the median, worst, none of them twice.

    Args:
        iou, rows: (M,) of the rows that were evaluated.
        each: how many of a kind; fewer when there are less than three times as many.
    Returns:
        {"best": rows, "median": rows, "worst": rows}, IoU falling throughout; a kind without rows is left out.
    """
    order = rows[np.argsort(-np.asarray(iou), kind="stable")].tolist()
    each = min(each, max(1, len(order) // 3))
    best, rest = order[:each], order[each:]
    worst, rest = rest[max(0, len(rest) - each):], rest[:max(0, len(rest) - each)]
    start = max(0, (len(rest) - each) // 2)
    kinds = {"best": best, "median": rest[start:start + each], "worst": worst}
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def sample_entry(sentence: str, iou: float, index: int, name: str, pictures: list[np.ndarray],
                 size: tuple[int, int]) -> dict:
    """What the page shows of one sample.

    Args:
        sentence, name: any text; the page escapes it.
        iou: a fraction.
        pictures: those of TITLES, (S, S, 3) uint8.
        size: (width, height) of the original image, whose proportions the pictures get.
    """
    scale = LONGEST_SIDE / max(size)
    size = tuple(max(1, round(side * scale)) for side in size)
    if len(sentence) > LONGEST_SENTENCE:
        sentence = sentence[:LONGEST_SENTENCE] + "…"
    return {"sentence": sentence, "iou": iou, "index": index, "name": name,
            "pictures": [(title, *size, data_uri(resize(picture, size)))
                         for title, picture in zip(TITLES, pictures, strict=True)]}


def data_uri(image: np.ndarray) -> str:
    """(h, w, 3) uint8 as a `data:` address of a JPEG picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def histogram(iou: np.ndarray) -> list[tuple[float, float, int]]:
    """BINS equal bins of [0, 1]: lower end, upper end, count; the last holds 1 too."""
    counts, edges = np.histogram(iou, bins=BINS, range=(0, 1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


def write_report(path: str, metrics: dict, iou: np.ndarray, samples: dict[str, list[dict]], notes: list[str] = ()
                 ) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        metrics: what `metrics.json` holds.
        iou: (M,) IoU of the rows that were evaluated, fractions.
        samples: {"best": entries, ...}, the entries from `sample_entry`.
        notes: sentences about the samples.
    Raises:
        InputError: it cannot be written.
    """
    environment = Environment(loader=FileSystemLoader(os.path.dirname(__file__)), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with_intervals = list(metrics["intervals_95"])
    page = environment.get_template("report.html.jinja").render(
        metrics=metrics, bins=histogram(iou), median=float(np.median(iou)), samples=samples, notes=notes,
        heads=list(dict.fromkeys([*with_intervals[:3], with_intervals[-1]])),
        percentages=[name for name, value in metrics.items() if isinstance(value, float)])
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)
