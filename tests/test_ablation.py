"""The text ablation measures what other sentences change, and where."""
import pytest
import torch

from evaluation.ablation import TextAblation, ablation_table, change, object_contrast
from models import Output
from utils.color import standardise
from utils.contrast import ring


def grey(level: float, count: int = 1) -> torch.Tensor:
    return standardise(torch.full((count, 3, 4, 4), level / 255))


def test_the_change_is_measured_inside_and_outside_of_the_object():
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, :2] = 1
    other = grey(100, 2)
    other[0, :, :2] = grey(110)[0, :, :2]
    other[0, :, 2:] = grey(97)[0, :, 2:]
    found = change(grey(100, 2), other, target)
    assert found[0].tolist() == pytest.approx([10, 3], abs=1e-3)
    assert found[1].isnan().tolist() == [True, False]  # there is no object


def test_every_sentence_is_scored_against_the_same_object():
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[:, :2] = 1
    asked = []

    def predict(batch, sentences):
        """Finds the object only with its own sentence, and brightens the image by one level for every letter."""
        asked.append(sentences)
        hit = torch.tensor([sentence == f"object {row}" for row, sentence in zip(batch["row"], sentences, strict=True)])
        foreground = target[batch["row"]] * hit[:, None, None] * 2.0 - 1
        fused = torch.cat([grey(100 + len(sentence)) for sentence in sentences])
        return Output(fused, torch.stack([-foreground, foreground], 1))

    ablation = TextAblation(["object 1", "object 0"], predict)
    counts = torch.zeros(2, 5, dtype=torch.long)
    for row in (1, 0):
        batch = {"row": torch.tensor([row]), "target": target[[row]]}
        output = predict(batch, [f"object {row}"])
        counts[row] = torch.tensor([8, 8, 8, 8, 16])
        ablation.add(batch, output)
    assert asked == [["object 1"], ["object 0"], [""], ["object 0"], ["object 1"], [""]]
    summary = ablation.summary(counts, torch.tensor([0, 1]))
    assert summary["true"] == {"mIoU": 100.0, "oIoU": 100.0, "change_inside": 0.0, "change_outside": 0.0}
    assert summary["swapped"] == pytest.approx({"mIoU": 0, "oIoU": 0, "change_inside": 0, "change_outside": 0})
    assert summary["empty"] == pytest.approx({"mIoU": 0, "oIoU": 0, "change_inside": 8, "change_outside": 8}, abs=1e-3)
    contrasts = ablation.contrast_summary(torch.tensor([0, 1]), ["a", "b"], seed=0)
    assert contrasts["num_samples"] == 0  # a tenth of 4 pixels is none, so there is no ring
    table = ablation_table(summary, contrasts).splitlines()
    assert table[3].split() == ["empty", "0.00", "0.00", "8.00", "8.00", "-"]


def scenes(levels: list[float], background: float = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 20×20 pixels with an object of 4×4 of each of these grey levels, and its masks."""
    target = torch.zeros(len(levels), 20, 20, dtype=torch.long)
    target[:, 8:12, 8:12] = 1
    grey_levels = torch.where(target == 1, torch.tensor(levels)[:, None, None], background)
    return standardise(grey_levels[:, None].expand(-1, 3, -1, -1) / 255), target


def test_the_contrast_is_that_of_the_object_with_a_ring_around_it():
    fused, target = scenes([130, 60, 100])
    target[2] = 1  # an object that fills the image has no surroundings
    fused[:, :, :, :6] = standardise(torch.zeros(3, 3, 20, 6))  # more than a tenth of the side, 2 pixels, away
    inside = target == 1
    found = object_contrast(fused, inside, ring(inside))
    assert found[:2].tolist() == pytest.approx([30, 40], abs=1e-3)
    assert found[2].isnan()
    none = torch.zeros_like(inside)
    assert object_contrast(fused, none, ring(none)).isnan().all()
    fused[0, :, 6, 6] = standardise(torch.zeros(3, 1, 1))[:, 0, 0]  # a corner of the ring of 8² − 4² pixels
    assert object_contrast(fused, inside, ring(inside))[0].item() == pytest.approx(30 + 100 / 48, abs=1e-3)


def test_it_is_counted_how_often_the_own_sentence_gives_the_larger_contrast():
    levels = {"own": [130, 120, 60, 100], "other": [110, 120, 80, 100], "": [100, 100, 100, 100]}
    target = scenes([0] * 4)[1]
    target[3] = 0  # refers to nothing

    def predict(batch, sentences):
        fused = scenes(levels[sentences[0]])[0][batch["row"]]
        return Output(fused, torch.zeros(len(fused), 2, 20, 20))

    ablation = TextAblation(["other"] * 4, predict)
    batch = {"row": torch.arange(4), "target": target}
    ablation.add(batch, predict(batch, ["own"] * 4))
    contrasts = ablation.contrast_summary(torch.arange(4), ["a", "b", "c", "d"], seed=0)
    means = {name: contrasts[name] for name in ("true", "swapped", "empty", "own_larger")}
    assert means == pytest.approx({"true": 30, "swapped": 50 / 3, "empty": 0, "own_larger": 200 / 3}, abs=1e-3)
    assert contrasts["num_samples"] == 3
    assert contrasts["intervals_95"]["true"] == pytest.approx([20, 40], abs=0.1)
    assert contrasts["intervals_95"]["own_larger"] == pytest.approx([0, 100])
    table = ablation_table(ablation.summary(torch.ones(4, 5, dtype=torch.long), torch.arange(4)), contrasts)
    assert "30.00  [20.00, 40.00]" in table
    assert "own sentence than with the swapped one: 66.67 % of 3 samples [0.00, 100.00]" in table
