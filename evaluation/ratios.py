"""IoU, and the segmentation metrics as ratios of sums over samples, from which the bootstrap draws. NumPy alone."""
import numpy as np

Ratios = dict[str, tuple[np.ndarray, np.ndarray]]


def iou_of(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU of each sample.

    Args:
        intersection, union: (N,) pixel counts.
    Returns:
        (N,) float64 in [0, 1]; 0 where the union is empty.
    """
    intersection, union = np.asarray(intersection, float), np.asarray(union, float)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def precisions(iou: np.ndarray, thresholds) -> dict[str, np.ndarray]:
    """{"precision@t": (N,) float64}, 1 where the (N,) IoU is at least t, else 0."""
    return {f"precision@{t:g}": (iou >= t).astype(float) for t in thresholds}


def segmentation_ratios(intersection: np.ndarray, union: np.ndarray, thresholds) -> Ratios:
    """mIoU, oIoU and precision@t as ratios of sums over samples.

    Args:
        intersection, union: (N,) pixel counts.
        thresholds: the t.
    Returns:
        {name: (numerators, denominators)}, (N,) float64 each; the quotient of their sums is the metric as a fraction.
    """
    iou = iou_of(intersection, union)
    return {"mIoU": share(iou), "oIoU": (np.asarray(intersection, float), np.asarray(union, float)),
            **{name: share(hits) for name, hits in precisions(iou, thresholds).items()}}


def generalised_scores(predicted: np.ndarray, iou: np.ndarray, has_object: np.ndarray) -> np.ndarray:
    """What the gIoU of generalised referring segmentation averages (Liu et al., "GRES", CVPR 2023).

    Args:
        predicted: (N,) number of predicted pixels.
        iou: (N,) fractions.
        has_object: (N,) bool, False where the sentence refers to nothing.
    Returns:
        (N,) float64: the IoU where there is an object; elsewhere 1 if nothing is predicted, else 0.
    """
    return np.where(has_object, iou, np.asarray(predicted) == 0)


def share(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) values as the ratio that is their mean."""
    return values, np.ones_like(values)


def share_of_defined(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) values as the ratio that is the mean of those that are finite."""
    values = np.asarray(values, float)
    defined = np.isfinite(values)  # some fusion metrics are not defined on every image
    return np.where(defined, values, 0.0), defined.astype(float)
