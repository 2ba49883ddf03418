"""How sure are the metrics? The bootstrap over images (Efron and Tibshirani, 1993).

Several sentences share an image, and what makes one of them hard makes the others hard too. So images are drawn, each
with all its rows: drawing rows would give intervals that are too narrow.
"""
import numpy as np

RESAMPLES, PAIRED_RESAMPLES = 2000, 10000
CHUNK_CELLS = 2**22  # draws × images held at a time

Ratios = dict[str, tuple[np.ndarray, np.ndarray]]


def segmentation_ratios(intersection: np.ndarray, union: np.ndarray, thresholds) -> Ratios:
    """mIoU, oIoU and precision@t as ratios of sums over rows.

    Args:
        intersection, union: (N,) pixel counts.
        thresholds: the t.
    Returns:
        {name: (numerators, denominators)}, (N,) float64 each; the quotient of their sums is the metric as a fraction.
    """
    intersection, union = np.asarray(intersection, float), np.asarray(union, float)
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    ones = np.ones_like(iou)
    return {"mIoU": (iou, ones), "oIoU": (intersection, union),
            **{f"precision@{t:g}": ((iou >= t).astype(float), ones) for t in thresholds}}


def intervals(ratios: Ratios, images, seed: int, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """95% percentile intervals.

    Args:
        ratios: as `segmentation_ratios` gives them.
        images: (N,), what tells the image of each row from the others.
        seed: same seed, same intervals.
        resamples: how many times as many images as there are get drawn, with replacement.
    Returns:
        {name: (2.5th, 97.5th percentile)}, in the unit of the ratio.
    """
    drawn = _draw(_sums(ratios, images), seed, resamples)
    return {name: tuple(ends) for name, ends in zip(ratios, np.percentile(drawn, (2.5, 97.5), axis=1).T.tolist(),
                                                    strict=True)}


def percent_intervals(ratios: Ratios, images, seed: int) -> dict[str, list[float]]:
    """`intervals` in percent, [lower, upper] each."""
    return {name: [100 * end for end in ends] for name, ends in intervals(ratios, images, seed).items()}


def compare(a: Ratios, b: Ratios, images, seed: int, resamples: int = PAIRED_RESAMPLES) -> dict[str, tuple]:
    """Is B other than A? The paired bootstrap: both are recomputed on the same drawn images.

    Args:
        a, b: the same names, and the same rows in the same order.
        images, seed, resamples: as in `intervals`.
    Returns:
        {name: (lower, upper, p)}: the 95% interval of B − A in the unit of the ratio, and the two-sided p-value, the
        share of draws on the rarer side of 0, twice, never below 2 / (resamples + 1).
    """
    sums_a, sums_b = _sums(a, images), _sums(b, images)
    drawn = _draw(np.concatenate([sums_a, sums_b]), seed, resamples)
    results = {}
    for name, difference in zip(a, drawn[len(a):] - drawn[:len(a)], strict=True):
        rarer = min((difference <= 0).sum(), (difference >= 0).sum())
        results[name] = (*np.percentile(difference, (2.5, 97.5)).tolist(), min(1.0, 2 * (rarer + 1) / (resamples + 1)))
    return results


def _sums(ratios: Ratios, images) -> np.ndarray:
    """(metrics, 2, images) sums of numerators and denominators over the rows of each image."""
    _, image_of_row = np.unique(np.asarray(images), return_inverse=True)
    return np.array([[np.bincount(image_of_row, weights=part) for part in pair] for pair in ratios.values()])


def _draw(sums: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """(metrics, resamples) ratios, each over one drawing of images; 0 where there is nothing to divide by."""
    count = sums.shape[-1]
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, step := max(1, CHUNK_CELLS // count)):
        size = min(step, resamples - start)
        times = generator.multinomial(count, np.full(count, 1 / count), size=size)  # how often each image was drawn
        above, below = np.moveaxis(sums @ times.T, 1, 0)
        parts.append(np.divide(above, below, out=np.zeros_like(above), where=below > 0))
    return np.concatenate(parts, axis=1)
