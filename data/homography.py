"""Infrared images in the visible camera's pixels, by a 3×3 matrix that maps infrared to visible pixels."""
import json
import re
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import InputError
from utils.text import first_line, printable

from .npy import read_npy
from .pictures import read_bytes

LEAST_COVERED = 0.01  # of the visible image; less means that the matrix belongs to other pictures
LARGEST_SCALE = 30  # times that the infrared image may be enlarged, in each direction, beyond the visible image's size


class Warped(NamedTuple):
    pixels: np.ndarray  # (h, w, 3) uint8, at the visible image's size
    covered: float      # share of the pixels that the infrared image covers; the others show the visible luma


def read_matrix(path: str) -> np.ndarray:
    """A matrix from a file.

    Args:
        path: `.json` (three lists of three numbers, alone or under `matrix`), `.npy`, or a table of three lines with
            three numbers, separated by commas, semicolons or white space.
    Returns:
        (3, 3) float64, invertible.
    Raises:
        InputError: it cannot be read, or is no such matrix; says why.
    """
    try:
        content = read_bytes(path)
        if path.lower().endswith(".npy"):
            values = read_npy(content)
        elif path.lower().endswith(".json"):
            values = json.loads(content)
            values = values.get("matrix") if isinstance(values, dict) else values
        else:
            lines = content.decode("utf-8-sig").split("\n")
            values = [[float(cell) for cell in re.split(r"[,;\s]+", line.strip(" ,;\t\r"))] for line in lines
                      if line.strip()]
        matrix = np.array(values, np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"{printable(path)} cannot be read as a matrix ({printable(first_line(error))})") from error
    check_matrix(matrix, path)
    return matrix


def check_matrix(matrix: np.ndarray, name: str) -> None:
    """Refuse what is no (3, 3) array of finite numbers, or singular.

    Raises:
        InputError: with `name` before the reason.
    """
    if matrix.shape != (3, 3):
        raise InputError(f"{printable(name)} holds an array of shape {matrix.shape}, not 3×3 numbers")
    if not np.isfinite(matrix).all():
        raise InputError(f"{printable(name)} holds numbers that are infinite or NaN")
    if np.linalg.matrix_rank(matrix) < 3:
        raise InputError(f"{printable(name)} holds a singular matrix, which maps the infrared image to a line or point")


def warp(infrared: np.ndarray, matrix: np.ndarray, visible: np.ndarray) -> Warped:
    """The infrared image in the visible image's pixels; what it does not cover shows the visible luma.

    Args:
        infrared, visible: (h, w, 3) uint8 RGB, of any sizes.
        matrix: of `read_matrix`: (x, y, 1) of an infrared pixel to multiples of (x', y', 1); (0, 0) is the centre of
            the upper left pixel.
    Raises:
        InputError: the matrix does not fit pictures of these sizes; says why.
    """
    (height, width), (to_height, to_width) = infrared.shape[:2], visible.shape[:2]
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], np.float64)
    depths = corners @ matrix[2]
    if not (np.all(depths > 0) or np.all(depths < 0)):
        raise InputError("the matrix for the alignment maps a part of the infrared image to infinity; is it the "
                         "inverse that is needed, or one for other pictures?")
    placed = corners @ matrix[:2].T / depths[:, None]
    area = cv2.contourArea(placed.astype(np.float32))
    if area > LARGEST_SCALE ** 2 * to_height * to_width:
        raise InputError("the matrix for the alignment enlarges the infrared image beyond all proportion; is it one "
                         "for other pictures?")
    size = (to_width, to_height)
    pixels = cv2.warpPerspective(infrared, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpPerspective(np.ones((height, width), np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    covered = float(inside.mean())
    if covered < LEAST_COVERED:
        raise InputError(f"the matrix for the alignment places the infrared image of {width}×{height} px beside the "
                         f"visible one of {to_width}×{to_height} px, of which it covers {100 * covered:.2g} %; is it "
                         "the inverse that is needed, or one for other pictures?")
    luma = cv2.cvtColor(np.ascontiguousarray(visible), cv2.COLOR_RGB2GRAY)  # the weights of ITU-R BT.601
    return Warped(np.where(inside[..., None], pixels, luma[..., None]), covered)
