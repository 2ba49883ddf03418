"""Synthetic scenes seen by a visible and an infrared camera, and the sentences that single out their objects.

An object has a shape, seen by both cameras; a colour, seen by the visible one only; a temperature, seen by the
infrared one only; and a place. An object at ambient temperature does not show in the infrared image, and one in a dark
patch does not show in the visible image; some dark patches are empty. Which object a sentence means can therefore be
found neither from one of the images alone nor without the sentence.
"""
import itertools
from dataclasses import dataclass

import cv2
import numpy as np

SHAPES = ("disc", "square", "triangle")
COLOURS = {"red": (205, 52, 46), "green": (52, 158, 66), "blue": (48, 84, 208), "yellow": (232, 204, 52)}  # RGB
TEMPERATURES = {"hot": 222, "cold": 30, "ambient": None}  # infrared grey level; ambient: that of the background
# Each phrase, and the direction from the centre, x right and y down, in which its objects lie.
PLACES = {
    "on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1),
    "in the middle": (0, 0)}

OUTLINES = {  # corners relative to the centre, in units of the object's radius; areas as large as a disc's or nearly
    "square": 0.9 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": 1.27 * np.array([(0, -1), (0.866, 0.5), (-0.866, 0.5)])}
REACH = 1.28  # in these units, no shape extends farther; the same for all, so that none is easier to place
SOFT_EDGE = 0.05  # a dark patch brightens over this distance beside its fully dark core,
WOBBLE = 0.05  # which reaches up to this much farther than its radius, unevenly
ATTEMPTS = 100  # layouts tried for one choice of how many objects there are and how many of them hidden
DARKNESS = 0.07  # the light in the core


@dataclass(frozen=True)
class Object:
    """One object; lengths are shares of the image side, `angle` is in radians."""

    shape: str
    colour: str
    temperature: str
    place: str
    x: float
    y: float
    radius: float
    angle: float
    hidden: bool

    def seen(self) -> dict[str, str]:
        """The attributes that show in at least one of the two images."""
        seen = {"temperature": self.temperature, "colour": self.colour, "shape": self.shape, "place": self.place}
        if self.temperature == "ambient":
            del seen["temperature"]
        if self.hidden:
            del seen["colour"]
        return seen


@dataclass(frozen=True)
class Scene:
    """`patches` are dark places (x, y, radius of the core); `seed` decides textures and noise."""

    objects: tuple[Object, ...]
    patches: tuple[tuple[float, float, float], ...]
    seed: tuple[int, ...]


def make_scene(seed: tuple[int, ...]) -> Scene:
    """Three or four objects, apart from each other, that differ pairwise in something that shows."""
    rng = np.random.default_rng(seed)
    while True:
        # Chosen before the attempts, so that crowded layouts do not become rare; chosen again after ATTEMPTS, because
        # some choices cannot be laid out.
        hidden = int(rng.choice([0, 1, 2], p=[0.3, 0.5, 0.2]))
        count = 3 if hidden == 2 else int(rng.choice([3, 4], p=[0.55, 0.45]))  # two dark patches fill much of the image
        crossed = rng.random() < 0.6 and count - hidden >= 2
        for _ in range(ATTEMPTS):
            objects, patches = _arrange(rng, count, hidden)
            if objects and all(a.seen() != b.seen() for a, b in itertools.combinations(objects, 2)):
                scene = Scene(tuple(objects), tuple(patches), seed)
                if not crossed or any(expressions_of_both(scene, i) for i in range(len(objects))):
                    return scene


def _arrange(rng: np.random.Generator, count: int, hidden: int) -> tuple[list[Object], list]:
    """One attempt at a layout; empty when it got too crowded."""
    # Few shapes and colours per scene, so that one attribute seldom tells all objects apart.
    shapes = rng.permutation(SHAPES)[:2]
    colours = rng.permutation(list(COLOURS))[:2]
    decoys = rng.choice([0, 1])
    objects, patches, taken = [], [], []

    def free(x: float, y: float, reach: float) -> bool:
        inside = min(x, y, 1 - x, 1 - y) > reach + 0.01
        return inside and all(np.hypot(x - a, y - b) > reach + r + 0.015 for a, b, r in taken)

    for number in range(count):
        dark = number < hidden
        radius = rng.uniform(0.11, 0.155)
        shape, colour = str(rng.choice(shapes)), str(rng.choice(colours))
        temperature = str(rng.choice(["hot", "cold"] if dark else list(TEMPERATURES)))
        for _ in range(15):
            place, x, y = _position(rng)
            circle = (x, y, radius * REACH)
            if dark:
                # The object lies anywhere in its patch, so that the patch does not give away its outline.
                slack, turn = rng.uniform(0.01, 0.04), rng.uniform(0, 2 * np.pi)
                patch = (x + slack * np.cos(turn), y + slack * np.sin(turn), radius * REACH + slack)
                circle = (*patch[:2], patch[2] + SOFT_EDGE)
            if free(*circle):
                break
        else:
            return [], []
        taken.append(circle)
        if dark:
            patches.append(patch)
        objects.append(Object(shape, colour, temperature, place, x, y, radius, rng.uniform(-0.2, 0.2), dark))
    for _ in range(40):
        if not decoys:
            break
        x, y, core = *rng.uniform(0.15, 0.85, 2), rng.uniform(0.13, 0.22)
        if free(x, y, core + SOFT_EDGE):
            taken.append((x, y, core + SOFT_EDGE))
            patches.append((x, y, core))
            decoys -= 1
    order = rng.permutation(len(objects))  # otherwise the hidden ones would come first
    return [objects[i] for i in order], patches


def _position(rng: np.random.Generator) -> tuple[str, float, float]:
    """One of PLACES and a point in it. The places are apart, so that it is clear which one a point is in."""
    place = list(PLACES)[rng.integers(len(PLACES))]
    towards = PLACES[place]
    if towards == (0, 0):
        x, y = rng.uniform(-0.08, 0.08, 2)
    else:
        along = rng.uniform(0.24, 0.38)
        across = along * rng.uniform(-0.75, 0.75)
        x, y = (along * towards[0], across) if towards[0] else (across, along * towards[1])
    return place, 0.5 + x, 0.5 + y


def draw_mask(item: Object, size: int) -> np.ndarray:
    """(size, size) uint8, 1 on the object."""
    return (_coverage(item, size) >= 0.5).astype(np.uint8)


def draw_visible(scene: Scene, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB; depends on the colours and not on the temperatures."""
    rng = np.random.default_rng((*scene.seed, 1))
    tint = rng.uniform(95, 140) + rng.uniform(-10, 10, 3)
    image = tint + 16 * _texture(rng, size, 5)[..., None] + 9 * _texture(rng, size, size // 3)[..., None]
    for item in scene.objects:
        paint = rng.normal(0, 7, 3) + 8 * _texture(rng, size, size // 4)[..., None]
        if item.hidden:
            continue
        shadow = cv2.GaussianBlur(_coverage(item, size, offset=0.02), (0, 0), 0.015 * size)
        image *= 1 - 0.35 * shadow[..., None]
        colour = COLOURS[item.colour] + paint
        cover = _coverage(item, size)[..., None]
        image = image * (1 - cover) + colour * cover
    image *= _slope(rng, size, 0.2)[..., None]
    for patch in scene.patches:
        image *= _light(patch, size, rng)[..., None]
    return _finish(image + rng.normal(0, 3, image.shape))


def draw_infrared(scene: Scene, size: int) -> np.ndarray:
    """(size, size) uint8; depends on the temperatures and not on colours or darkness."""
    rng = np.random.default_rng((*scene.seed, 2))
    image = rng.uniform(105, 140) + 14 * _texture(rng, size, 4) + 6 * _texture(rng, size, size // 4)
    image *= _slope(rng, size, 0.12)
    for item in scene.objects:
        level = rng.normal(0, 10) + 10 * _texture(rng, size, 4)
        if TEMPERATURES[item.temperature] is None:
            continue
        cover = _coverage(item, size)
        glow = 0.25 * cv2.GaussianBlur(cover, (0, 0), 0.03 * size)
        cover = np.maximum(cv2.GaussianBlur(cover, (0, 0), 0.006 * size), glow)
        image = image * (1 - cover) + (TEMPERATURES[item.temperature] + level) * cover
    return _finish(image + rng.normal(0, 3, image.shape))


def _coverage(item: Object, size: int, offset: float = 0) -> np.ndarray:
    """(size, size) float32: the share of each pixel that the object covers, moved down and right by `offset`."""
    scale, bits = 4, 4  # drawn larger, on a grid finer than its pixels
    canvas = np.zeros((size * scale, size * scale), np.uint8)
    unit = size * scale * 2**bits
    centre = np.array((item.x + offset, item.y + offset)) * unit - 2 ** (bits - 1)
    if item.shape == "disc":
        cv2.circle(canvas, np.rint(centre).astype(int).tolist(), round(item.radius * unit), 255, -1, cv2.LINE_AA, bits)
    else:
        turn = np.array([(np.cos(item.angle), np.sin(item.angle)), (-np.sin(item.angle), np.cos(item.angle))])
        corners = centre + OUTLINES[item.shape] @ turn * item.radius * unit
        cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 255, cv2.LINE_AA, bits)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _light(patch: tuple[float, float, float], size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size): DARKNESS in the core of a dark patch, 1 outside its soft edge."""
    x, y, core = patch
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    core = core + WOBBLE * np.clip(0.5 + 0.7 * _texture(rng, size, 6), 0, 1)
    return DARKNESS + (1 - DARKNESS) * np.clip((np.hypot(columns - x, rows - y) - core) / SOFT_EDGE, 0, 1)


def _texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size): smooth noise of about unit strength, `cells` bumps to a side."""
    coarse = rng.normal(0, 1, (max(cells, 2), max(cells, 2)))
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _slope(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """(size, size): a factor around 1 that rises evenly in a random direction."""
    turn = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    return 1 + strength * (np.cos(turn) * columns + np.sin(turn) * rows) * 2**0.5


def _finish(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def expressions(scene: Scene, target: int) -> list[dict[str, str]]:
    """All sets of attributes that show on the object number `target` and on no other, the smallest first."""
    seen = [item.seen().items() for item in scene.objects]
    subsets = [
        dict(subset) for length in range(1, len(seen[target]) + 1)
        for subset in itertools.combinations(seen[target], length)]
    return [subset for subset in subsets if sum(subset.items() <= other for other in seen) == 1]


def expressions_of_both(scene: Scene, target: int) -> list[dict[str, str]]:
    """Those `expressions` in which neither the colour nor the temperature can be missed."""
    fitting = expressions(scene, target)
    return [one for one in fitting if {"colour", "temperature"} <= one.keys() and not any(
        without(one, "colour") == other or without(one, "temperature") == other for other in fitting)]


def without(attributes: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in attributes.items() if key != name}


def pick_expression(scene: Scene, target: int, rng: np.random.Generator) -> dict[str, str] | None:
    """One of `expressions`, often a shortest one; None if the object cannot be singled out."""
    fitting = expressions(scene, target)
    if not fitting:
        return None
    if (of_both := expressions_of_both(scene, target)) and rng.random() < 0.7:
        return of_both[rng.integers(len(of_both))]
    # Expressions with the place are rarer, because it nearly always suffices alone; so are those with neither colour
    # nor temperature, because both images show the shape.
    weights = np.array([
        (3 if not any(other.items() < one.items() for other in fitting) else 1)
        * (0.15 if "place" in one else 1) * (1 if {"colour", "temperature"} & one.keys() else 0.05)
        for one in fitting])
    return fitting[rng.choice(len(fitting), p=weights / weights.sum())]


def sentence(attributes: dict[str, str]) -> str:
    """The referring expression: `the hot red disc on the left`."""
    words = ["the", attributes.get("temperature"), attributes.get("colour"), attributes.get("shape", "object"),
             attributes.get("place")]
    return " ".join(word for word in words if word)
