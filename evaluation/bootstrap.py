"""Confidence intervals and p-values of the metrics: the bootstrap over images (Efron and Tibshirani, 1993).

Several sentences share an image, and what makes one of them hard makes the others hard too. So images are drawn, each
with all its rows: drawing rows would give intervals that are too narrow.
"""
import numpy as np

from .ratios import Ratios

RESAMPLES, PAIRED_RESAMPLES = 2000, 10000
CHUNK_CELLS = 2**22  # draws × images that are held at a time


def intervals(ratios: Ratios, images, seed: int, resamples: int = RESAMPLES, chunk_cells: int = CHUNK_CELLS
              ) -> dict[str, tuple[float, float]]:
    """95% percentile intervals.

    Args:
        ratios: as `ratios.segmentation_ratios` returns them.
        images: (N,), equal for rows of the same image.
        seed: of the draws; the same seed gives the same intervals.
        resamples: number of draws, each of as many images as there are, with replacement.
        chunk_cells: draws × images that are held in memory at a time.
    Returns:
        {name: (2.5th, 97.5th percentile)}, in the unit of the ratio.
    """
    drawn = _draw(_sums(ratios, images), seed, resamples, chunk_cells)
    return {name: tuple(ends) for name, ends in zip(ratios, np.percentile(drawn, (2.5, 97.5), axis=1).T.tolist(),
                                                    strict=True)}


def percent_intervals(ratios: Ratios, images, seed: int) -> dict[str, list[float]]:
    """`intervals` in percent, [lower, upper] each."""
    return {name: [100 * end for end in ends] for name, ends in intervals(ratios, images, seed).items()}


def paired_intervals(a: Ratios, b: Ratios, images, seed: int, resamples: int = PAIRED_RESAMPLES,
                     chunk_cells: int = CHUNK_CELLS) -> dict[str, tuple[float, float, float]]:
    """95% intervals and p-values of B − A by the paired bootstrap: both are recomputed on the same drawn images.

    Args:
        a, b: the same names, and the same rows in the same order.
        images, seed, resamples, chunk_cells: as in `intervals`.
    Returns:
        {name: (lower, upper, p)}: the 95% interval of B − A in the unit of the ratio, and the two-sided p-value, the
        share of draws on the rarer side of 0, twice, never below 2 / (resamples + 1).
    """
    sums_a, sums_b = _sums(a, images), _sums(b, images)
    drawn = _draw(np.concatenate([sums_a, sums_b]), seed, resamples, chunk_cells)
    results = {}
    for name, gain in zip(a, drawn[len(a):] - drawn[:len(a)], strict=True):
        rarer = min((gain <= 0).sum(), (gain >= 0).sum())
        results[name] = (*np.percentile(gain, (2.5, 97.5)).tolist(), min(1.0, 2 * (rarer + 1) / (resamples + 1)))
    return results


def _sums(ratios: Ratios, images) -> np.ndarray:
    """(metrics, 2, images) sums of numerators and denominators over the rows of each image."""
    _, image_of_row = np.unique(np.asarray(images), return_inverse=True)
    return np.array([[np.bincount(image_of_row, weights=part) for part in pair] for pair in ratios.values()])


def _draw(sums: np.ndarray, seed: int, resamples: int, chunk_cells: int) -> np.ndarray:
    """(metrics, resamples) ratios, each over one draw of images; 0 where the denominator is 0."""
    count = sums.shape[-1]
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, step := max(1, chunk_cells // count)):
        size = min(step, resamples - start)
        times = generator.multinomial(count, np.full(count, 1 / count), size=size)  # each image was drawn
        above, below = np.moveaxis(sums @ times.T, 1, 0)
        parts.append(np.divide(above, below, out=np.zeros_like(above), where=below > 0))
    return np.concatenate(parts, axis=1)
