"""Pictures of one size side by side at that size, under a sentence."""
import os
import textwrap

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_CELL = 200  # pixels; narrower pictures are set apart, or their titles would overlap
LONGEST_TEXT = 500  # characters


def panel(sentence: str, pictures: dict[str, np.ndarray]) -> np.ndarray:
    """A page with the sentence on top and a title above each picture.

    Args:
        sentence: in any alphabet; Chinese and other characters that the font lacks come out as boxes.
        pictures: by title, (h, w, 3) uint8 each, all of one size; shown pixel by pixel.
    Returns:
        (H, W, 3) uint8: very wide pictures below each other, very high ones in a row, others in two columns.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    columns = 1 if width >= 2 * height else len(pictures) if height >= 2 * width else 2
    cell = max(width, SMALLEST_CELL)
    # Of all the fonts that come with our libraries this one knows the most alphabets.
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
