"""Fusion metrics follow their definitions."""
import json

import numpy as np
import pytest
import torch
from parity import FIGURES

from evaluation.fusion_metrics import NAMES, FusionMeter, baselines, fusion_metrics, fusion_table
from models import Output
from utils.color import standardise


def lumas(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A visible image with texture and an infrared one with two warm spots, of whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729 + (x * y) % 251 * 31) % 41
    visible = 60 + (x * 90) // width + 40 * ((x // 9 + y // 7) % 2) + noise
    warm = ((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 5) ** 2) | ((x // 12 == 5) & (y // 15 == 1))
    infrared = 50 + (y * 40) // height + 120 * warm + noise[::-1] // 4
    return visible.astype(np.uint8), infrared.astype(np.uint8)


@pytest.mark.parametrize("size", ["96x128", "75x61"])
def test_known_images_have_known_values(size):
    pair = lumas(*map(int, size.split("x")))
    for name, image in baselines(*pair).items():
        assert fusion_metrics(image, *pair) == pytest.approx(KNOWN[size][name], rel=1e-3)


KNOWN = json.loads((FIGURES / "fusion_metrics.json").read_text())


def test_statistics_of_one_image_follow_their_formulas():
    x = np.arange(64)
    stripes = np.broadcast_to(np.where(x % 2, 110, 100), (48, 64)).astype(np.uint8)
    ramp = np.broadcast_to(3 * x, (48, 64)).astype(np.uint8)
    values = fusion_metrics(stripes, ramp, ramp.copy())
    assert values["EN"] == pytest.approx(1)  # two grey levels, equally often
    assert values["SD"] == pytest.approx(5)
    assert values["SF"] == pytest.approx(10)  # every horizontal difference is 10, every vertical one 0
    values = fusion_metrics(ramp, stripes, stripes)
    assert values["EN"] == pytest.approx(6)
    assert values["AG"] == pytest.approx(3 / 2**0.5)


def test_an_image_is_its_own_perfect_fusion():
    image, _ = lumas(64, 64)
    values = fusion_metrics(image, image, image)
    assert values["MI"] == pytest.approx(2 * values["EN"])
    assert values["CC"] == pytest.approx(1)
    assert values["SSIM"] == pytest.approx(2, abs=1e-5)
    assert values["VIF"] == pytest.approx(2, abs=1e-3)
    assert values["Qabf"] == pytest.approx(0.9994 / (1 + np.exp(-7.5)) * 0.9879 / (1 + np.exp(-4.4)), rel=1e-3)


def test_what_was_taken_from_a_source_shows_in_the_difference_to_the_other():
    visible, infrared = lumas(64, 64)
    visible, infrared = visible // 2, infrared // 2
    assert fusion_metrics(visible + infrared, visible, infrared)["SCD"] == pytest.approx(2)


def test_the_average_rounds_up_and_does_not_overflow():
    made = baselines(np.array([[255, 3]], np.uint8), np.array([[254, 4]], np.uint8))
    assert made["average"].tolist() == [[255, 4]]
    assert made["maximum"].tolist() == [[255, 4]]


@pytest.mark.filterwarnings("error")
def test_what_is_not_defined_is_nan():
    grey, (image, other) = np.full((48, 48), 7, np.uint8), lumas(48, 48)
    values = fusion_metrics(grey, image, other)
    assert values["EN"] == values["SD"] == 0
    assert np.isnan(values["CC"])
    assert np.isnan(fusion_metrics(*[0 * grey] * 3)["Qabf"])
    fused = baselines(image, other)["average"]
    small = fusion_metrics(*(part[:40, :40] for part in (fused, image, other)))
    assert [name for name, value in small.items() if np.isnan(value)] == ["VIF"]
    tiny = fusion_metrics(*(part[:10, :40] for part in (fused, image, other)))
    assert all(np.isnan(value) for value in tiny.values())


def test_images_of_different_size_are_refused():
    with pytest.raises(ValueError, match="sizes differ"):
        fusion_metrics(np.zeros((48, 48), np.uint8), np.zeros((48, 48), np.uint8), np.zeros((48, 49), np.uint8))


def batch_of(rows: list[int], pairs) -> tuple[dict, Output]:
    fused = standardise(torch.full((len(rows), 3, 64, 64), 0.5) + torch.linspace(-0.3, 0.3, 64))
    return {"row": torch.tensor(rows), "lumas": pairs}, Output(fused, torch.zeros(len(rows), 2, 64, 64))


def test_means_leave_out_what_is_not_defined_and_rows_that_were_not_seen():
    meter = FusionMeter(4)
    seen, grey = lumas(70, 90), (np.full((70, 90), 9, np.uint8),) * 2
    meter.add(*batch_of([0, 2], [seen, seen]))
    meter.add(*batch_of([3], [grey]))
    rows = torch.tensor([0, 2, 3])
    summary = meter.summary(rows)
    assert list(summary) == ["fused", "average", "maximum"]
    assert list(summary["fused"]) == list(NAMES)
    alone = meter.summary(torch.tensor([0]))
    assert summary["fused"]["CC"] == pytest.approx(alone["fused"]["CC"])  # of row 3, one grey level, there is none
    assert summary["average"]["SD"] == pytest.approx(alone["average"]["SD"] * 2 / 3)
    assert meter.summary(torch.tensor([3]))["average"]["CC"] is None
    assert fusion_table(meter.summary(torch.tensor([3]))).splitlines()[2].split()[7] == "-"
    assert (meter.values[1] == 0).all()
