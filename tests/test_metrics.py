"""Metrics follow their definitions."""
import numpy as np
import pytest
import torch

from evaluation.metrics import no_target_metrics, pixel_counts, sample_iou, summarise


def logits_of(masks: torch.Tensor) -> torch.Tensor:
    return torch.stack([1.0 - masks, masks.float()], dim=1)


@pytest.fixture
def counts() -> torch.Tensor:
    """Three samples of 4×4: a half hit, a perfect one, and nothing predicted where nothing is."""
    predicted, truth = torch.zeros(2, 3, 4, 4, dtype=torch.long)
    predicted[0, 0], truth[0, 0:2] = 1, 1
    predicted[1, :2, :2] = truth[1, :2, :2] = 1
    return pixel_counts(logits_of(predicted), truth)


def test_pixels_are_counted_for_each_sample(counts):
    assert counts.tolist() == [[4, 8, 4, 8, 16], [4, 4, 4, 4, 16], [0, 0, 0, 0, 16]]


def test_iou_of_an_empty_union_is_zero(counts):
    assert sample_iou(counts).tolist() == [0.5, 1.0, 0.0]


def test_metrics_are_percentages_by_their_definitions(counts):
    metrics = summarise(counts, thresholds=(0.5, 0.75))
    assert metrics["mIoU"] == pytest.approx(100 * 1.5 / 3)
    assert metrics["oIoU"] == pytest.approx(100 * 8 / 12)
    assert metrics["cIoU"] == pytest.approx(100 * (8 / 12 + 36 / 40) / 2)
    assert metrics["Precision"] == pytest.approx(100.0)
    assert metrics["Recall"] == pytest.approx(100 * 8 / 12)
    assert metrics["F1"] == pytest.approx(100 * 16 / 20)
    assert metrics["precision@0.5"] == pytest.approx(100 * 2 / 3)  # an IoU of exactly 0.5 counts
    assert metrics["precision@0.75"] == pytest.approx(100 / 3)
    assert metrics["num_samples"] == 3


def test_a_set_without_any_foreground_has_no_division_by_zero():
    metrics = summarise(torch.tensor([[0, 0, 0, 0, 16]]))
    assert metrics["mIoU"] == metrics["oIoU"] == metrics["F1"] == 0.0
    assert metrics["cIoU"] == 50.0


def test_a_sentence_that_refers_to_nothing_is_right_where_nothing_is_predicted():
    counts = torch.tensor([[4, 8, 4, 8, 16], [0, 0, 0, 0, 16], [0, 3, 3, 0, 16], [0, 0, 0, 0, 16], [0, 0, 0, 0, 16]])
    has_object = np.array([True, False, False, False, True])  # the last is too small to have a pixel, and not found
    assert no_target_metrics(counts, has_object) == {
        "gIoU": pytest.approx(100 * (0.5 + 1 + 0 + 1 + 0) / 5), "N-acc": pytest.approx(200 / 3), "num_no_target": 3}
    assert summarise(counts)["mIoU"] == pytest.approx(100 * 0.5 / 5)  # as published: 0 for an empty union
