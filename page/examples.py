"""Pairs to try the page with: synthetic scenes, as `data/synthetic.py` writes them."""
import os

import numpy as np
from PIL import Image

from data.prepare.scenes import draw_infrared, draw_visible, make_scene, pick_expression, sentence

SCENES = ((7, 2, 0), (7, 2, 3), (7, 2, 8))  # seeds; easy ones of sixteen, that `make demo`'s model finds
SIDE = 288  # pixels, at least: smaller pictures show little on the page


def write_examples(folder: str, side: int) -> list[list[str]]:
    """Write scenes of at least `side` px to a folder, which is made; for each [visible file, infrared file, sentences].

    The sentences are about two of its objects, one a line.
    """
    os.makedirs(folder)
    examples = []
    for number, seed in enumerate(SCENES, start=1):
        scene = make_scene(seed)
        rng = np.random.default_rng((*seed, 3))
        found = [pick_expression(scene, target, rng) for target in rng.permutation(len(scene.objects))]
        sentences = [sentence(attributes) for attributes in found if attributes is not None][:2]
        paths = [os.path.join(folder, f"scene_{number}_{kind}.png") for kind in ("visible", "infrared")]
        for path, draw in zip(paths, (draw_visible, draw_infrared), strict=True):
            Image.fromarray(draw(scene, max(side, SIDE))).save(path)
        examples.append([*paths, "\n".join(sentences)])
    return examples
