"""Decoded pixels to what the networks take: S × S, as Pillow would resize them, and standardised."""
from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image

from utils.color import IMAGENET_MEAN, IMAGENET_STD

# The processes that load are the parallelism; OpenCV's own threads would compete with them, and outlive no fork.
cv2.setNumThreads(0)

# Of each channel: (x / 255 − mean) / std is SCALE · x + OFFSET.
SCALE = [1 / (255 * std) for std in IMAGENET_STD]
OFFSET = [torch.tensor(-mean / std) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]


class Squares:
    """Resizes pairs and masks to S × S into memory of the caller's. For one thread at a time.

    Fresh memory costs more than the arithmetic on it, so what lies between is kept for the next call.

    Args:
        size: S, pixels.
    """

    def __init__(self, size: int):
        self.size = size
        # NumPy's arrays, not tensors, which processes that an instance is pickled to would share.
        self._split: tuple[np.ndarray, ...] | None = None
        self._resized = np.empty((size, size, 4), np.uint8)
        self._planes = [np.empty((size, size), np.uint8) for _ in range(4)]

    def pair(self, vis: np.ndarray, ir: np.ndarray, out_vis: torch.Tensor, out_ir: torch.Tensor) -> None:
        """Resize a visible and an infrared image like Pillow's antialiased bilinear filter, and standardise them.

        Within 1/255 of Pillow's pixels, and as near to the exact ones: each rounds at its own places.

        Args:
            vis, ir: uint8, as `decode_pixels` gives them: (h, w) grey, or (h, w, 4), RGB and a channel that is ignored
                and may be overwritten. Their sizes may differ.
            out_vis, out_ir: (3, S, S) float32, contiguous; overwritten.
        """
        ir = self._grey(ir)
        if vis.ndim == 3 and vis.shape[:2] == ir.shape:
            # Four channels are resized faster than three or one, so the infrared image goes along with the visible.
            cv2.insertChannel(ir, vis, 3)
            *colours, grey = self._resize(vis)
            _standardise(colours, out_vis)
            # From float, which is faster three times than from 8 bits, and the last channel may be made from itself.
            out_ir[2].copy_(torch.from_numpy(grey))
            _standardise([out_ir[2].numpy()] * 3, out_ir)
        else:
            for pixels, out in ((vis, out_vis), (ir, out_ir)):
                colours = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGBA) if pixels.ndim == 2 else pixels
                _standardise(self._resize(colours)[:3], out)

    def _grey(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, 4) whose colours are all grey as (h, w), which is a third of the work; anything else as it is."""
        if pixels.ndim == 2 or not (pixels[::32, :, 1:3] == pixels[::32, :, :1]).all():
            return pixels
        self._split = red, green, blue, _ = cv2.split(pixels, self._split)
        return red if np.array_equal(red, green) and np.array_equal(red, blue) else pixels

    def _resize(self, canvas: np.ndarray) -> list[np.ndarray]:
        """(h, w, 4) to four planes of (S, S), overwritten by the next call."""
        # What torch.nn.functional.interpolate(antialias=True) calls, but into memory that is there already.
        torch.ops.aten._upsample_bilinear2d_aa.out(
            _as_batch(canvas), [self.size, self.size], False, None, None, out=_as_batch(self._resized))
        return cv2.split(self._resized, self._planes)

    def mask(self, mask: np.ndarray, out: torch.Tensor) -> None:
        """Resize like Pillow's nearest filter.

        Args:
            mask: (h, w) uint8.
            out: (S, S) int64; overwritten.
        """
        rows, columns = (_nearest(side, self.size) for side in mask.shape)
        # Whole rows are taken much faster than columns.
        resized = cv2.transpose(cv2.transpose(mask).take(columns, axis=0)).take(rows, axis=0)
        out.copy_(torch.from_numpy(resized))


def _standardise(planes: list[np.ndarray], out: torch.Tensor) -> None:
    """Three planes of (S, S), 0 to 255, into `out`, (3, S, S) float32, whose last may be one of them."""
    for plane, scale, offset, channel in zip(planes, SCALE, OFFSET, out, strict=True):
        torch.add(offset, torch.from_numpy(plane), alpha=scale, out=channel)


def _as_batch(pixels: np.ndarray) -> torch.Tensor:
    """(h, w, c) as a (1, c, h, w) tensor over the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@lru_cache(maxsize=64)
def _nearest(side: int, size: int) -> np.ndarray:
    """(size,) int64: the pixel of `side` that Pillow takes for each of `size`, asked of Pillow itself.

    Where a centre falls between two pixels, its choice rests on how it rounds, and cannot be had from a formula.
    """
    ramp = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    return np.asarray(ramp.resize((size, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
