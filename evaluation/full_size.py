"""Fusion at the size of the pictures themselves, whole or tile by tile.

The fuser is local: convolutions, pooling over 2×2 pixels, attention of each pixel over the words, and batch norm, which
in evaluation mode is a constant scale and offset. Nothing in it is computed over the whole picture. Four levels of two
3×3 convolutions make a pixel depend on what lies at most `REACH` pixels around its block of 8×8. Tiles overlap by twice
as much, begin at multiples of 8, as the pooling requires, and each keeps the pixels that see all they depend on. These
are the pixels of the picture fused whole, up to rounding, so there is no seam to blend.
"""
import numbers
from typing import Any, NamedTuple

import numpy as np
import torch

from models.ris_fusion import Encoded, Sentences
from utils.color import standardise
from utils.draw import resize, to_image
from utils.errors import UsageError
from utils.progress import progress_bar
from utils.sizes import BLOCK, LARGEST_SIDE, SMALLEST_TILE, TILE, WHOLE
from utils.text import printable_value

from .inference import Inference, fast

REACH = 48  # pixels, a multiple of 8; 46 are needed


class Span(NamedTuple):
    """Rows or columns of a tile, in pixels of the picture: from the first to before the second number."""

    start: int  # of what the fuser sees
    stop: int
    first: int  # of what is kept
    last: int


class SizedPair(NamedTuple):
    """Two images at the size at which they are fused; made by `FullSizeFuser.encode`."""

    visible: np.ndarray   # (h, w, 3) uint8 RGB
    infrared: np.ndarray  # likewise
    features: tuple[Encoded, ...] | None  # of the whole pair, as of `Inference.encode_pair`; None: fused in tiles


class FullSizeFuser:
    """Fuses pictures at their own size or another one, without a segmenter.

    Memory is bounded by the tile, but for the pictures themselves.

    Args:
        model: on `device`.
        device: where to compute.
        size: `native`, the pictures' own size, or the longer side in pixels; smaller pictures keep theirs.
        tile: pictures of more than WHOLE · `tile`² pixels are fused in tiles of at most this side; 0: always whole.
        show_progress: show a bar on standard output where there are several tiles.
    """

    def __init__(self, model: Inference, device: torch.device, size: str | int = "native", tile: int = TILE,
                 show_progress: bool = False):
        self.model = model
        self.device = device
        self.size = size
        self.tile = tile
        self.show_progress = show_progress

    def size_of(self, image: np.ndarray) -> tuple[int, int]:
        """The (width, height) at which an image (h, w, 3) is fused."""
        height, width = image.shape[:2]
        scale = 1.0 if isinstance(self.size, str) else min(1.0, self.size / max(height, width))
        return max(1, round(width * scale)), max(1, round(height * scale))

    @torch.inference_mode()
    def encode(self, visible: np.ndarray, infrared: np.ndarray) -> SizedPair:
        """The part of a fusion that does not depend on the sentence; the fuser's encoders only if there is one tile.

        Args:
            visible, infrared: (h, w, 3) uint8 RGB of one size.
        """
        width, height = size = self.size_of(visible)
        if size != visible.shape[1::-1]:
            visible, infrared = resize(visible, size), resize(infrared, size)
        pair = SizedPair(visible, infrared, None)
        parts = tiles(height, width, self.tile)
        return pair._replace(features=self._features(pair, *parts[0])) if len(parts) == 1 else pair

    @torch.inference_mode()
    def fuse(self, pair: SizedPair, sentence: tuple[Sentences, ...]) -> np.ndarray:
        """Fuse a pair under the guidance of a sentence.

        Args:
            sentence: a batch of one, of `Inference.encode_text`.
        Returns:
            (h, w, 3) uint8 RGB, at the size of `pair`.
        Raises:
            ValueError: the result is not finite.
        """
        height, width = pair.visible.shape[:2]
        fused = np.empty((height, width, 3), np.uint8)
        parts = tiles(height, width, self.tile)
        for rows, columns in progress_bar(parts, desc="fuse", unit="tile", leave=False,
                                          disable=not self.show_progress or len(parts) == 1):
            fused[rows.first:rows.last, columns.first:columns.last] = self._fuse_tile(pair, sentence, rows, columns)
        if len(parts) > 1 and fast is not None:
            fast.trim_freed_memory(self.device)  # for what is drawn and encoded from so large a picture
        return fused

    def _fuse_tile(self, pair: SizedPair, sentence: tuple[Sentences, ...], rows: Span, columns: Span) -> np.ndarray:
        """What is kept of a tile, (h, w, 3) uint8; all tensors of the tile are freed before the next one."""
        height, width = pair.visible.shape[:2]
        features = self._features(pair, rows, columns) if pair.features is None else pair.features
        kept = self.model.fuse(features, sentence)[0, :, _kept(rows, height), _kept(columns, width)]
        if not kept.isfinite().all():
            raise ValueError("the fused image of this pair and sentence is not finite (NaN or infinity)")
        return to_image(kept)

    def _features(self, pair: SizedPair, rows: Span, columns: Span) -> tuple[Encoded, ...]:
        """The encoded pair of a tile."""
        return self.model.encode_pair(*(self._to_tensor(image, rows, columns) for image in pair[:2]))

    def _to_tensor(self, pixels: np.ndarray, rows: Span, columns: Span) -> torch.Tensor:
        """A tile of (h, w, 3) uint8 as (1, 3, H, W) float32, standardised; reflected where it exceeds the picture."""
        part = pixels[rows.start:rows.stop, columns.start:columns.stop]
        missing = rows.stop - rows.start - part.shape[0], columns.stop - columns.start - part.shape[1]
        # NumPy reflects as often as it takes, and repeats a single row or column.
        part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), "reflect")
        return standardise(torch.from_numpy(part).to(self.device).permute(2, 0, 1).float().div(255))[None]


def tiles(height: int, width: int, tile: int) -> list[tuple[Span, Span]]:
    """Rows and columns of each tile of a picture, pixels; one tile if it has at most WHOLE · `tile`², or `tile` is 0.

    Tiles begin and end at multiples of 8, so that the last ones may exceed the picture.
    """
    whole = not tile or height * width <= WHOLE * tile ** 2
    rows, columns = (_spans(-(-side // BLOCK) * BLOCK, 0 if whole else tile) for side in (height, width))
    return [(down, across) for down in rows for across in columns]


def check_settings(fuse_size: Any, tile: Any) -> None:
    """Check what a program gives.

    Raises:
        UsageError: `fuse_size` is not `native`, `network` or a number of pixels, or `tile` not 0 or a side in pixels.
    """
    named = isinstance(fuse_size, str) and fuse_size in ("native", "network")
    if not named and not _whole_number(fuse_size, BLOCK):
        raise UsageError(f"must be native, network or a whole number of at least {BLOCK} and at most {LARGEST_SIDE} "
                         f"pixels, not {printable_value(fuse_size)}", "fuse_size")
    if not _whole_number(tile, SMALLEST_TILE) and not (_whole_number(tile, 0) and tile == 0):
        raise UsageError(f"must be 0 or a whole number of at least {SMALLEST_TILE} and at most {LARGEST_SIDE} pixels, "
                         f"not {printable_value(tile)}", "tile")


def _whole_number(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and least <= value <= LARGEST_SIDE


def _spans(side: int, tile: int) -> list[Span]:
    """Divide `side` pixels, a multiple of 8, into spans of about one size."""
    if not tile or side <= tile:
        return [Span(0, side, 0, side)]
    inner, most = side - 2 * REACH, tile // BLOCK * BLOCK - 2 * REACH
    count = -(-inner // most)
    step = -(-inner // (count * BLOCK)) * BLOCK
    starts = [number * step for number in range(count)]
    cuts = [0, *(start + REACH for start in starts[1:]), side]
    return [Span(start, min(start + step + 2 * REACH, side), first, last)
            for start, first, last in zip(starts, cuts, cuts[1:], strict=False)]


def _kept(span: Span, side: int) -> slice:
    """What is kept of a tile, counted from its start, without what exceeds the picture."""
    return slice(span.first - span.start, min(span.last, side) - span.start)
