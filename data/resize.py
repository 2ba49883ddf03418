"""From decoded pixels to the networks' input: resized to S × S like Pillow does, and standardised."""
from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image

from utils.color import IMAGENET_MEAN, IMAGENET_STD

# Worker processes are the parallelism. OpenCV's own threads would compete with them, and do not survive a fork.
cv2.setNumThreads(0)

# Of each channel: (x / 255 − mean) / std is SCALE · x + OFFSET.
SCALE = [1 / (255 * std) for std in IMAGENET_STD]
OFFSET = [torch.tensor(-mean / std) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]


class Resizer:
    """Resizes pairs of images and masks to S × S, into memory of the caller. For one thread at a time.

    Intermediate arrays are kept for the next call: allocating them costs more than the arithmetic on them.

    Args:
        size: S, pixels.
        exact: images get the very pixels of Pillow's bilinear filter. False is faster where only one side of an image
            is not S already: there PyTorch's filter is within 1/255 of Pillow's. (Over two sides it is within 2/255.)
    """

    def __init__(self, size: int, exact: bool = False):
        self.size, self.exact = size, exact
        # NumPy arrays, because tensors would be shared with the processes that an instance is pickled to.
        self._split: tuple[np.ndarray, ...] | None = None
        self._resized = np.empty((size, size, 4), np.uint8)
        self._planes = [np.empty((size, size), np.uint8) for _ in range(4)]

    def pair(self, vis: np.ndarray, ir: np.ndarray, out_vis: torch.Tensor, out_ir: torch.Tensor) -> None:
        """Resize a visible and an infrared image with Pillow's antialiased bilinear filter, and standardise them.

        Args:
            vis, ir: uint8, as `decode_pixels` gives them: (h, w) grey, or (h, w, 4), RGB and a channel that is ignored
                and may be overwritten. Their sizes may differ.
            out_vis, out_ir: (3, S, S) float32, contiguous; overwritten.
        """
        ir = self._grey(ir)
        if vis.ndim == 3 and vis.shape[:2] == ir.shape:
            # Four channels take no longer than three, so both images are resized at once.
            cv2.insertChannel(ir, vis, 3)
            *colours, grey = self._resize(vis)
            _standardise(colours, out_vis)
            # Converted to float once, in the last channel, from which all three are made.
            out_ir[2].copy_(torch.from_numpy(grey))
            _standardise([out_ir[2].numpy()] * 3, out_ir)
        else:
            self.image(vis, out_vis)
            self.image(ir, out_ir)

    def image(self, pixels: np.ndarray, out: torch.Tensor) -> None:
        """Resize a single image; as in `pair`."""
        colours = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGBA) if pixels.ndim == 2 else pixels
        _standardise(self._resize(colours)[:3], out)

    def _grey(self, pixels: np.ndarray) -> np.ndarray:
        """An (h, w, 4) image in which all colours are grey as (h, w), a third of the work; others as they are."""
        if pixels.ndim == 2 or not (pixels[::32, :, 1:3] == pixels[::32, :, :1]).all():
            return pixels
        self._split = red, green, blue, _ = cv2.split(pixels, self._split)
        return red if np.array_equal(red, green) and np.array_equal(red, blue) else pixels

    def _resize(self, canvas: np.ndarray) -> list[np.ndarray]:
        """(h, w, 4) to four planes of (S, S), overwritten by the next call."""
        if self.exact or self.size not in canvas.shape[:2]:
            image = Image.frombuffer("RGBX", canvas.shape[1::-1], canvas, "raw", "RGBX", 0, 1)
            resized = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
            return cv2.split(resized, self._planes)
        # What torch.nn.functional.interpolate(antialias=True) calls, into memory that exists already.
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
        # Taking rows is much faster than taking columns.
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
    """(size,) int64: which of `side` pixels Pillow's nearest filter takes for each of `size`.

    Found by resizing a ramp: where a centre falls between two pixels, the choice depends on how Pillow rounds.
    """
    ramp = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    return np.asarray(ramp.resize((size, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
