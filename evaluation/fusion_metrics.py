"""Quality of fused images: ten metrics on 8-bit lumas, with the two sources as the only reference.

The definitions are those of the public benchmarks of infrared and visible fusion. MI, VIF and SSIM are sums over the
two sources, CC is their mean; for each of them, higher counts as better.
"""
import io

import cv2
import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure, visual_information_fidelity

from utils import distributed
from utils.draw import fused_picture

from .metrics import defined
from .results import encode_jpeg

NAMES = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "Qabf", "VIF", "SSIM")
IMAGES = ("fused", "average", "maximum")
SMALLEST, SMALLEST_VIF = 11, 41  # pixels on a side: the window of SSIM, and the four scales of VIF


def fusion_metrics(fused: np.ndarray, visible: np.ndarray, infrared: np.ndarray) -> dict[str, float]:
    """All metrics of one image, by the names in NAMES.

    Args:
        fused, visible, infrared: (h, w) uint8 luma.
    Returns:
        EN entropy (bits, 256 bins); SD standard deviation, SF spatial frequency and AG average gradient (grey levels);
        MI mutual information with the sources (bits, 256 bins), summed; SCD sum of the correlations of differences
        (Aslantas and Bendes, 2015); CC correlation with the sources, averaged; Qabf edge preservation (Xydeas and
        Petrović, 2000; beyond the border all is black); VIF pixel-based visual information fidelity and SSIM
        structural similarity, of 255 grey levels, with the sources, summed.
        NaN where a metric is not defined: a correlation with an image of one grey level, edges where there are none,
        images with a side below 11 px (VIF: 41 px).
    Raises:
        ValueError: the three differ in size.
    """
    if not fused.shape == visible.shape == infrared.shape:
        raise ValueError(f"the sizes differ: {fused.shape}, {visible.shape}, {infrared.shape}")
    if min(fused.shape) < SMALLEST:
        return dict.fromkeys(NAMES, float("nan"))
    f, v, i = (image.astype(np.float64) for image in (fused, visible, infrared))
    dy, dx = np.gradient(f)
    values = {
        "EN": _entropy(np.bincount(fused.ravel(), minlength=256)),
        "SD": f.std(),
        "SF": np.sqrt(np.mean(np.diff(f, axis=0) ** 2) + np.mean(np.diff(f, axis=1) ** 2)),
        "AG": np.sqrt((dx**2 + dy**2) / 2).mean(),
        "MI": _mutual_information(fused, visible) + _mutual_information(fused, infrared),
        "SCD": _correlation(f - v, i) + _correlation(f - i, v),
        "CC": (_correlation(f, v) + _correlation(f, i)) / 2,
        "Qabf": _edge_preservation(f, v, i),
        "VIF": _vif(f, v) + _vif(f, i),
        "SSIM": _ssim(f, v) + _ssim(f, i),
    }
    return {name: float(value) for name, value in values.items()}


def baselines(visible: np.ndarray, infrared: np.ndarray) -> dict[str, np.ndarray]:
    """Fusion without a network: `average` (v + i + 1) // 2 and `maximum`, (h, w) uint8 as the sources."""
    average = (visible.astype(np.uint16) + infrared + 1) // 2
    return {"average": average.astype(np.uint8), "maximum": np.maximum(visible, infrared)}


class FusionMeter:
    """Collects the metrics of an evaluation's fused images and of the baselines.

    Attributes:
        values: (N, 3, 10) float64 by row, IMAGES and NAMES; 0 in rows that were not added.

    Args:
        rows: N, of the data set.
    """

    def __init__(self, rows: int):
        self.values = torch.zeros(rows, len(IMAGES), len(NAMES), dtype=torch.float64)
        self._pair = self._baselines = None

    def add(self, batch: dict, output) -> None:
        """Measure the fused images of a batch loaded with `lumas`.

        The model's output is measured after JPEG compression as in the files, an image that was given as it is.
        """
        for i, row in enumerate(batch["row"].tolist()):
            visible, infrared = batch["lumas"][i]
            if "fused_luma" in batch:
                luma = batch["fused_luma"][i]
            else:
                fused = fused_picture(batch, output, i, visible.shape[::-1])
                luma = np.asarray(Image.open(io.BytesIO(encode_jpeg(fused))).convert("L"))
            measured = [fusion_metrics(luma, visible, infrared), *self._of_baselines(visible, infrared)]
            self.values[row] = torch.tensor([[of[name] for name in NAMES] for of in measured], dtype=torch.float64)

    def _of_baselines(self, *pair: np.ndarray) -> list[dict[str, float]]:
        """Metrics of the baselines; kept for the next row, which is often another sentence about the same pair."""
        if self._pair is None or not all(map(np.array_equal, self._pair, pair)):
            self._pair = pair
            self._baselines = [fusion_metrics(image, *pair) for image in baselines(*pair).values()]
        return self._baselines

    def gather(self) -> None:
        """Join what all processes have measured."""
        self.values = distributed.total(self.values)

    def columns(self) -> dict[str, torch.Tensor]:
        """The fused image's metrics, (N,) each."""
        return dict(zip(NAMES, self.values[:, 0].unbind(1), strict=True))

    def summary(self, rows: torch.Tensor) -> dict[str, dict[str, float | None]]:
        """{image: {metric: mean over those of `rows` where it is defined, None if there is none}}."""
        means = self.values[rows].nanmean(0).tolist()
        return {image: {name: defined(value) for name, value in zip(NAMES, line, strict=True)}
                for image, line in zip(IMAGES, means, strict=True)}


def fusion_table(summary: dict[str, dict[str, float | None]]) -> str:
    """`FusionMeter.summary` as aligned lines for the terminal."""
    lines = [["", *NAMES]] + [[image, *("-" if values[name] is None else f"{values[name]:.3f}" for name in NAMES)]
                              for image, values in summary.items()]
    return "\n".join("".join(f"{cell:<9}" if i == 0 else f"{cell:>8}" for i, cell in enumerate(line)) for line in lines)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return -np.sum(shares * np.log2(shares))


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.bincount(a.ravel().astype(np.intp) * 256 + b.ravel(), minlength=256 * 256).reshape(256, 256)
    return _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return np.sum(a * b) / scale if scale > 0 else np.nan


def _edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strength, and orientation in (−π/2, π/2] with y upwards, of Sobel edges; black outside the image."""
    gx = cv2.Sobel(image, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_CONSTANT)
    gy = -cv2.Sobel(image, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_CONSTANT)
    slope = np.divide(gy, gx, out=np.full_like(gx, np.inf), where=gx != 0)
    return np.hypot(gx, gy), np.arctan(slope)


def _edge_preservation(fused: np.ndarray, *sources: np.ndarray) -> float:
    """Qabf: how well strength and orientation of the sources' edges are kept, weighted by their strength."""
    strength_f, angle_f = _edges(fused)
    kept = total = 0.0
    for source in sources:
        strength, angle = _edges(source)
        stronger = np.maximum(strength, strength_f)
        ratio = np.divide(np.minimum(strength, strength_f), stronger, out=np.zeros_like(stronger), where=stronger > 0)
        turn = 1 - np.abs(angle - angle_f) / (np.pi / 2)
        quality = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (turn - 0.8)))
        kept, total = kept + np.sum(quality * strength), total + np.sum(strength)
    return kept / total if total > 0 else np.nan


def _vif(fused: np.ndarray, source: np.ndarray) -> float:
    if min(fused.shape) < SMALLEST_VIF:
        return np.nan
    # VIF depends on variances alone, which a common offset does not change; around 0, float32 rounds them less.
    return visual_information_fidelity(_tensor(fused - 128), _tensor(source - 128)).item()


def _ssim(fused: np.ndarray, source: np.ndarray) -> float:
    return structural_similarity_index_measure(_tensor(fused), _tensor(source), data_range=255.0).item()


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float()[None, None]
