"""Pictures for people: overlays, panels, contact sheets.

Images are (H, W, 3) uint8 RGB arrays, masks (H, W) bool arrays.
"""
import os
import textwrap

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from . import distributed
from .color import destandardise
from .files import replacing

RED = np.array([255, 0, 0])
SMALLEST_CELL = 200  # pixels; narrower pictures get a margin, so that their titles do not overlap
WIDEST_PANEL = 1600  # pixels
MARGIN = 32  # pixels, at least what a panel has around and between its pictures, for each column
LONGEST_TEXT = 500  # characters
TITLES = ("visible", "infrared", "fused", "prediction", "truth")


def to_image(standardised: torch.Tensor) -> np.ndarray:
    """(3, H, W) standardised, on any device, to (H, W, 3) uint8."""
    pixels = destandardise(standardised.float()).mul(255).round().byte()
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (width, height): images bilinearly, masks by their nearest pixel."""
    if image.shape[1::-1] == tuple(size):
        return np.ascontiguousarray(image)
    resample = Image.Resampling.NEAREST if image.dtype == bool else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize(size, resample))


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of any type to (width, height) by the nearest pixel, as `resize` does with masks, in less memory."""
    columns, rows = (np.asarray(Image.fromarray(np.arange(side, dtype=np.int32)[None]).resize(
        (to, 1), Image.Resampling.NEAREST))[0] for side, to in zip(values.shape[::-1], size, strict=True))
    return values[rows[:, None], columns]


def fused_picture(batch: dict, output, i: int, size: tuple[int, int]) -> np.ndarray:
    """Sample `i`'s fused image at (width, height) `size`: that of the batch, else the model's, resized."""
    return resize(batch["fused"][i] if "fused" in batch else to_image(output.fused[i]), size)


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The image with the masked pixels in translucent red."""
    drawn = image.copy()
    drawn[mask] = np.round((1 - opacity) * image[mask] + opacity * RED)
    return drawn


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`overlay` with a white outline around the mask, which is visible on red objects too."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(overlay(image, mask), contours, -1, (255, 255, 255), 1)


def heat_map(probability: np.ndarray) -> np.ndarray:
    """(h, w) floats in [0, 1] to (h, w, 3) uint8: 0 black, then purple, red and yellow, 1 nearly white."""
    levels = np.round(probability * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def contact_sheet(rows: list[tuple[str, list[np.ndarray]]], titles=TITLES, cell: int = 192) -> Image.Image:
    """A page with one row of pictures per sample and a sentence above each row.

    Args:
        rows: (sentence, pictures); every row has as many pictures as there are titles.
        titles: column headings.
        cell: width of a column in pixels; pictures keep their aspect ratio.
    """
    gap, line = 8, 24
    font = ImageFont.load_default(size=15)
    pictures = [[Image.fromarray(picture).resize((cell, round(cell * picture.shape[0] / picture.shape[1])))
                 for picture in row] for _, row in rows]
    heights = [max(p.height for p in row) for row in pictures]
    width = gap + len(titles) * (cell + gap)
    page = Image.new("RGB", (width, line + gap + sum(line + height + gap for height in heights)), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.text((gap + column * (cell + gap) + cell // 2, gap + line // 2), title, "black", font, anchor="mm")
    top = line + gap
    for (sentence, _), row, height in zip(rows, pictures, heights, strict=True):
        pen.text((gap, top + line // 2), _fit(sentence, font, width - 2 * gap), "black", font, anchor="lm")
        for column, picture in enumerate(row):
            page.paste(picture, (gap + column * (cell + gap), top + line))
        top += line + height + gap
    return page


def _fit(text: str, font, width: int) -> str:
    """Cut `text` to `width` pixels on one line; characters that the font lacks are drawn as boxes."""
    text = " ".join(text.split())[:LONGEST_TEXT]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def panel_cell(size: tuple[int, int], count: int) -> tuple[int, int]:
    """The (width, height) at which a panel of `count` pictures of this size is at most WIDEST_PANEL wide."""
    width, height = size
    columns = _columns(width, height, count)
    scale = min(1, (WIDEST_PANEL // columns - MARGIN) / width)
    return int(width * scale), max(1, int(height * scale))


def panel(sentence: str, pictures: dict[str, np.ndarray]) -> np.ndarray:
    """A page with the sentence on top and a title above each picture.

    Args:
        sentence: in any alphabet; Chinese and other characters that the font lacks are drawn as boxes.
        pictures: by title, (h, w, 3) uint8 each, all of one size, usually that of `panel_cell`; not scaled.
    Returns:
        (H, W, 3) uint8: very wide pictures below each other, very tall ones in a row, others in two columns.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    columns = _columns(width, height, len(pictures))
    cell = max(width, SMALLEST_CELL)
    # Of the fonts that are installed with our requirements, this one covers the most alphabets.
    file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(file, min(max(columns * cell // 55, 13), 48))
    gap, line = round(font.size / 2), round(font.size * 1.5)
    page_width = gap + columns * (cell + gap)
    lines = textwrap.wrap(sentence[:LONGEST_TEXT], max(1, int((page_width - 2 * gap) / font.getlength("n"))))
    top = gap + len(lines) * line
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (page_width, top + rows * (line + height + gap)), "white")
    pen = ImageDraw.Draw(page)
    for number, words in enumerate(lines):
        pen.text((gap, gap + number * line), words, "black", font)
    for number, (title, picture) in enumerate(pictures.items()):
        row, column = divmod(number, columns)
        x, y = gap + column * (cell + gap), top + row * (line + height + gap)
        pen.text((x + cell // 2, y + line // 2), title, "black", font, anchor="mm")
        page.paste(Image.fromarray(picture), (x + (cell - width) // 2, y + line))
    return np.asarray(page)


def _columns(width: int, height: int, count: int) -> int:
    return 1 if width >= 2 * height else count if height >= 2 * width else 2


def sample_pictures(batch: dict, output, i: int) -> list[np.ndarray]:
    """Sample `i` of a batch of `data.collate` as pictures in the order of TITLES, the first three without segmenter."""
    fused = to_image(output.fused[i])
    pictures = [to_image(batch["vis"][i]), to_image(batch["ir"][i]), fused]
    if output.logits is None:
        return pictures
    predicted = (output.logits[i].argmax(0) == 1).cpu().numpy()
    return [*pictures, outlined(fused, predicted), outlined(fused, (batch["target"][i] == 1).numpy())]


class SampleSheet:
    """Collects the first samples of an evaluation and puts them on a contact sheet.

    Args:
        questions: the sentence of each row of the data set.
        count: how many rows to show.
    """

    def __init__(self, questions: list[str], count: int):
        self.questions = questions[:count]
        self.rows: list[tuple[str, list[np.ndarray]]] = []

    def add(self, batch: dict, output) -> None:
        """Keep the samples to be shown from a batch of `data.collate` and the model's output for it."""
        for i, row in enumerate(batch["row"].tolist()):
            if row < len(self.questions):
                self.rows.append((self.questions[row], sample_pictures(batch, output, i)))

    def gather(self) -> None:
        """Join the samples that all processes have collected, in the order of their rows."""
        self.rows = distributed.joined(self.rows)

    def page(self) -> np.ndarray | None:
        """The sheet, (H, W, 3) uint8; None if there is nothing on it."""
        return np.asarray(contact_sheet(self.rows, TITLES[:len(self.rows[0][1])])) if self.rows else None

    def save(self, path: str) -> None:
        """Write the sheet as PNG, if there is anything on it.

        Raises:
            InputError: it cannot be written.
        """
        if self.rows:
            with replacing(path) as temporary:
                Image.fromarray(self.page()).save(temporary, "PNG")
