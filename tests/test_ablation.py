"""The text ablation measures what other sentences change, and where."""
import pytest
import torch

from evaluation.ablation import TextAblation, ablation_table, change
from models import Output
from utils.color import standardise


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
    assert ablation_table(summary).splitlines()[3].split() == ["empty", "0.00", "0.00", "8.00", "8.00"]
