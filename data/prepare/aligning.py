"""Estimating the matrix that maps infrared to visible pixels, from point pairs or from the edges of both pictures."""
import logging
import re
from typing import NamedTuple

import cv2
import numpy as np

from data.homography import check_matrix
from data.pictures import read_bytes
from utils.errors import InputError
from utils.text import printable

LARGEST_ERROR = 3.0  # pixels of the visible image; farther pairs count as mistakes
LONGER_SIDE = 640  # pixels at which edges are compared
LEVELS = (4, 2, 1)  # by which that is divided, from coarse to fine
STEPS = (200, 1e-5)  # most iterations at a level, and the change of the correlation at which they end
UNLIKELY = 0.2  # correlation of edges; measured: 0.07 for two scenes, 0.5 for a pair of the same view
SQUARES = 8  # of the checkerboard along the longer side

logger = logging.getLogger(__name__)


class Alignment(NamedTuple):
    matrix: np.ndarray  # (3, 3) float64
    said: str  # how well it fits, for people
    error: dict[str, float]  # the same in numbers


def read_points(path: str) -> np.ndarray:
    """Point pairs, (N, 4) float64, from a file with a line x,y,x,y for each: visible, then infrared pixel.

    Raises:
        InputError: a line is wrong; or there are fewer than four.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig").split("\n")
    except ValueError as error:
        raise InputError(f"{printable(path)}: the points cannot be read ({printable(error)})") from error
    points = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            values = [float(cell) for cell in re.split(r"[,;\s]+", line.strip())]
        except ValueError:
            values = []
        if len(values) != 4 or not np.isfinite(values).all():
            raise InputError(f"{printable(path)}, line {number}: must be four numbers, x,y of the visible and x,y of "
                             f"the infrared pixel, not '{printable(line.strip(), 60)}'")
        points.append(values)
    if len(points) < 4:
        raise InputError(f"{printable(path)}: holds {len(points)} point pairs; at least 4 are needed")
    return np.array(points)


def from_points(points: np.ndarray) -> Alignment:
    """The matrix that fits most point pairs, by RANSAC; those farther off than LARGEST_ERROR are left out.

    Args:
        points: of `read_points`.
    Raises:
        InputError: they fix no matrix.
    """
    visible, infrared = points[:, :2], points[:, 2:]
    matrix, used = cv2.findHomography(infrared, visible, cv2.RANSAC, LARGEST_ERROR)
    if matrix is None:
        raise InputError("the points fix no matrix; they must not be on a line, nor all in one place")
    if np.linalg.matrix_rank(matrix) < 3:
        raise InputError("the points fix no matrix; they must not be on a line, nor all in one place")
    used = used[:, 0] > 0
    placed = cv2.perspectiveTransform(infrared[None], matrix)[0]
    error = float(np.sqrt(((placed - visible)[used] ** 2).sum(1).mean()))
    return Alignment(matrix, f"{used.sum()} of {len(points)} point pairs used, root mean square error {error:.2f} px",
                     {"pairs": len(points), "used": int(used.sum()), "rms_pixels": error})


def from_edges(visible: np.ndarray, infrared: np.ndarray) -> Alignment:
    """The matrix at which the edges of both pictures correlate most (ECC, Evangelidis and Psarakis 2008).

    The start is the infrared image stretched to the visible one; from there the search reaches shifts of some percent.

    Args:
        visible, infrared: (h, w, 3) uint8 RGB.
    Raises:
        InputError: the search finds nothing.
    """
    height, width = visible.shape[:2]
    small = min(1, LONGER_SIDE / max(height, width))
    found = np.eye(3)  # from the visible image's pixels to those of the infrared one, both resized to `size`
    size = (max(16, round(width * small)), max(16, round(height * small)))
    for level in LEVELS:
        there = (max(8, size[0] // level), max(8, size[1] // level))
        edges = [_edges(picture, there) for picture in (visible, infrared)]
        change = _scaling(size, there)
        start = change @ found @ np.linalg.inv(change)
        start = (start / start[2, 2]).astype(np.float32)
        try:
            after, matrix = cv2.findTransformECC(*edges, start, cv2.MOTION_HOMOGRAPHY,
                                                (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, *STEPS), None, 5)
        except cv2.error as error:
            raise InputError("the edges of the two pictures have too little in common to align them; give point pairs "
                             "with --points") from error
        found = np.linalg.inv(change) @ matrix.astype(np.float64) @ change
    before = cv2.computeECC(*edges)
    matrix = np.linalg.inv(_scaling((width, height), size)) @ np.linalg.inv(found) @ _scaling(
        infrared.shape[1::-1], size)
    check_matrix(matrix, "what the edges give")
    if after < UNLIKELY:
        logger.warning("the edges hardly agree (correlation %.2f), so the matrix is probably wrong; look at the "
                       "checkerboard, or give point pairs with --points", after)
    return Alignment(matrix / matrix[2, 2], f"correlation of the edges {after:.3f}, {before:.3f} without alignment",
                     {"correlation": float(after), "correlation_before": float(before)})


def checkerboard(visible: np.ndarray, warped: np.ndarray) -> np.ndarray:
    """Squares of both pictures in turn, to see whether contours go on across their edges.

    Args:
        visible, warped: (h, w, 3) uint8 RGB of one size.
    """
    side = max(1, -(-max(visible.shape[:2]) // SQUARES))
    rows, columns = (np.arange(length) // side for length in visible.shape[:2])
    even = (rows[:, None] + columns) % 2 == 0
    return np.where(even[..., None], visible, warped)


def _edges(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Strength of the edges, float32 of 0 to 1, at (width, height) `size`."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    grey = cv2.GaussianBlur(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), (5, 5), 0).astype(np.float32)
    strength = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return strength / max(float(strength.max()), 1e-6)


def _scaling(size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """The matrix from the pixels of a picture to those of the same picture resized; sizes are (width, height)."""
    x, y = to[0] / size[0], to[1] / size[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
