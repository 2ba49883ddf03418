"""report.html: an evaluation on one page that needs neither other files nor a network."""
import base64
import io
import os

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.color import destandardise
from utils.draw import TITLES, resize, to_image
from utils.files import replacing

LONGEST_SIDE = 360  # of a picture, pixels
LONGEST_SENTENCE = 300  # characters
BINS = 20
EACH = 3  # samples among the best, the median and the worst
LARGEST_FACTOR = 64  # by which a difference of two images is amplified


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
    return {"sentence": cut(sentence), "iou": iou, "index": index, "name": name,
            "pictures": framed(dict(zip(TITLES, pictures, strict=True)), size)}


def sentences_entry(own: str, other: str, fused: torch.Tensor, fused_other: torch.Tensor, size: tuple[int, int]
                    ) -> dict:
    """What the page shows of one sample with two sentences: both fused images, and how they differ.

    Args:
        own, other: the sentences, any text.
        fused, fused_other: (3, S, S) standardised, the fused image with each.
        size: (width, height) of the original image.
    Returns:
        With `pictures`, whose last is the absolute difference in grey, the mean of the channels. It is amplified by
        the largest power of two up to LARGEST_FACTOR that leaves it below white, which its title names.
    """
    difference = (destandardise(fused) - destandardise(fused_other)).abs().nan_to_num().mean(0)
    factor = LARGEST_FACTOR
    while factor > 1 and factor * difference.max() > 1:
        factor //= 2
    grey = difference.mul(255 * factor).round().byte().numpy()
    pictures = {"own sentence": to_image(fused), "other sentence": to_image(fused_other),
                f"difference × {factor}": np.stack([grey] * 3, axis=-1)}
    return {"own": cut(own), "other": cut(other), "pictures": framed(pictures, size)}


def cut(sentence: str) -> str:
    """At most the first LONGEST_SENTENCE characters."""
    return sentence if len(sentence) <= LONGEST_SENTENCE else sentence[:LONGEST_SENTENCE] + "…"


def framed(pictures: dict[str, np.ndarray], size: tuple[int, int]) -> list[tuple[str, int, int, str]]:
    """(title, width, height, address) of pictures (S, S, 3) uint8, in the proportions of `size`, (width, height)."""
    scale = LONGEST_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    return [(title, width, height, data_uri(resize(picture, (width, height)))) for title, picture in pictures.items()]


def data_uri(image: np.ndarray) -> str:
    """(h, w, 3) uint8 as a `data:` address of a JPEG picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def histogram(iou: np.ndarray) -> list[tuple[float, float, int]]:
    """BINS equal bins of [0, 1]: lower end, upper end, count; the last holds 1 too."""
    counts, edges = np.histogram(iou, bins=BINS, range=(0, 1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


def write_report(path: str, metrics: dict, iou: np.ndarray, samples: dict[str, list[dict]], notes: list[str] = (),
                 pairs: list[dict] = ()) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        metrics: what `metrics.json` holds.
        iou: (M,) IoU of the rows that were evaluated, fractions.
        samples: {"best": entries, ...}, the entries from `sample_entry`.
        notes: sentences about the samples.
        pairs: entries from `sentences_entry`.
    Raises:
        InputError: it cannot be written.
    """
    environment = Environment(loader=FileSystemLoader(os.path.dirname(__file__)), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with_intervals = list(metrics["intervals_95"])
    page = environment.get_template("report.html.jinja").render(
        metrics=metrics, bins=histogram(iou), median=float(np.median(iou)), samples=samples, notes=notes, pairs=pairs,
        heads=list(dict.fromkeys([*with_intervals[:3], with_intervals[-1]])),
        percentages=[name for name, value in metrics.items() if isinstance(value, float)])
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)
