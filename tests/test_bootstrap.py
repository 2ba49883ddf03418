"""Intervals and p-values by resampling images."""
import numpy as np
import pytest

from evaluation.bootstrap import intervals, paired_intervals
from evaluation.ratios import segmentation_ratios


def samples(images: int, sentences: int = 1, shift: float = 0.0, seed: int = 0):
    """Intersections and unions of samples of equal size, those of one image equally hard, and the images' names."""
    rng = np.random.default_rng(seed)
    iou = np.clip(np.repeat(rng.uniform(0.2, 0.8, images), sentences) + shift, 0, 1)
    return np.round(1000 * iou), np.full(images * sentences, 1000.0), np.repeat(np.arange(images), sentences)


def test_ratios_are_the_metrics():
    ratios = segmentation_ratios([2, 0, 9], [4, 0, 9], (0.5, 0.75))
    values = {name: above.sum() / below.sum() for name, (above, below) in ratios.items()}
    assert values == pytest.approx({"mIoU": 0.5, "oIoU": 11 / 13, "precision@0.5": 2 / 3, "precision@0.75": 1 / 3})


def test_intervals_agree_with_the_normal_approximation():
    intersection, union, images = samples(400)
    low, high = intervals(segmentation_ratios(intersection, union, ()), images, seed=0)["mIoU"]
    iou = intersection / union
    error = iou.std() / len(iou) ** 0.5
    assert (low, high) == pytest.approx((iou.mean() - 1.96 * error, iou.mean() + 1.96 * error), abs=0.1 * error)


def test_intervals_are_seeded():
    intersection, union, images = samples(30)
    ratios = segmentation_ratios(intersection, union, (0.5,))
    assert intervals(ratios, images, seed=1) == intervals(ratios, images, seed=1) != intervals(ratios, images, seed=2)


def test_more_sentences_on_the_same_images_do_not_make_it_surer():
    def width(images):
        low, high = intervals(ratios, images, seed=0)["mIoU"]
        return high - low

    intersection, union, images = samples(60, sentences=9)
    ratios = segmentation_ratios(intersection, union, ())
    assert width(images) == pytest.approx(3 * width(np.arange(len(images))), rel=0.15)


def test_many_images_are_drawn_in_chunks_of_the_same_result():
    intersection, union, images = samples(50)
    ratios = segmentation_ratios(intersection, union, ())
    assert intervals(ratios, images, seed=0, chunk_cells=500) == intervals(ratios, images, seed=0)


def test_two_equal_runs_do_not_differ():
    ratios = segmentation_ratios(*samples(20)[:2], ())
    assert paired_intervals(ratios, ratios, samples(20)[2], seed=0)["mIoU"] == (0.0, 0.0, 1.0)


def test_a_small_but_steady_gain_is_seen_because_the_samples_are_paired():
    a, b = (segmentation_ratios(*samples(50, shift=shift)[:2], ()) for shift in (0, 0.01))
    low, high, p = paired_intervals(a, b, samples(50)[2], seed=0)["mIoU"]
    assert low == pytest.approx(0.01, abs=1e-3) and high == pytest.approx(0.01, abs=1e-3)
    assert p < 0.001
    apart = [intervals(ratios, samples(50)[2], seed=0)["mIoU"] for ratios in (a, b)]
    assert apart[0][1] > apart[1][0]  # which the two intervals alone would not have shown


def test_which_run_comes_first_does_not_matter():
    a, b = (segmentation_ratios(*samples(40, seed=seed)[:2], ()) for seed in (0, 5))
    images = samples(40)[2]
    low, high, p = paired_intervals(a, b, images, seed=0)["mIoU"]
    assert paired_intervals(b, a, images, seed=0)["mIoU"] == pytest.approx((-high, -low, p))


def test_unlike_runs_of_equal_quality_are_rarely_called_different():
    images, called = np.arange(40), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = (segmentation_ratios(rng.integers(0, 1000, 40), np.full(40, 1000), ()) for _ in range(2))
        called += paired_intervals(a, b, images, seed, resamples=1000)["mIoU"][2] < 0.05
    assert called <= 6  # 2 are to be expected
