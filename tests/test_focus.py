"""The focus term asks the referred object to stand out; without it the loss is the published one."""
import pytest
import torch
from conftest import arguments, epochs_of, train

from models import Output, build_criterion
from models.focus import MARGIN, focus_term
from utils.color import standardise

SIDE = 20
TARGET = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
TARGET[:, 8:12, 8:12] = 1


def scene(object_level: float, background: float = 0.5) -> torch.Tensor:
    levels = torch.where(TARGET == 1, object_level, background)
    return standardise(levels[:, None].expand(-1, 3, -1, -1).contiguous())


@pytest.mark.parametrize(("fused", "missing"), [
    (0.5, 0.3 + MARGIN), (0.3, 0.1 + MARGIN), (0.2, MARGIN), (0.2 - MARGIN, 0), (0.02, 0),
    (0.6, 0.4 + MARGIN)])  # brighter than its surroundings, although the better source shows it darker
def test_the_object_is_to_stand_out_more_than_in_the_better_source(fused, missing):
    bright_in_vis, dark_in_ir = scene(0.6), scene(0.2)
    assert focus_term(scene(fused), bright_in_vis, dark_in_ir, TARGET).item() == pytest.approx(missing, abs=1e-5)


def test_samples_without_an_object_or_without_surroundings_ask_for_nothing():
    fused, vis, ir = (torch.cat([scene(level)] * 3) for level in (0.5, 0.6, 0.2))
    target = torch.cat([TARGET, torch.zeros_like(TARGET), torch.ones_like(TARGET)])
    assert focus_term(fused, vis, ir, target).item() == pytest.approx((0.3 + MARGIN) / 3, abs=1e-5)
    fused.requires_grad_()
    focus_term(fused, vis, ir, target[[1, 2, 1]]).backward()
    assert not fused.grad.any()  # and no NaN


def test_it_asks_for_changes_inside_the_object_alone():
    fused = scene(0.5).requires_grad_()
    focus_term(fused, scene(0.6), scene(0.2), TARGET).backward()
    assert torch.equal(fused.grad[:, 0] != 0, TARGET == 1)
    assert (fused.grad >= 0).all()  # it wants the object darker


def test_without_its_weight_the_loss_is_the_published_one():
    torch.manual_seed(0)
    output = Output(torch.randn(1, 3, SIDE, SIDE), torch.randn(1, 2, SIDE, SIDE))
    vis, ir = torch.randn(2, 1, 3, SIDE, SIDE)
    published, terms = build_criterion(arguments())(output, vis, ir, TARGET)
    zero, zero_terms = build_criterion(arguments(w_focus=0.0))(output, vis, ir, TARGET)
    assert torch.equal(zero, published) and zero_terms == terms and "focus" not in terms
    loss, terms = build_criterion(arguments(w_focus=0.5))(output, vis, ir, TARGET)
    assert terms["focus"] > 0
    assert float(loss - published) == pytest.approx(3 * 0.5 * float(terms["focus"]), rel=1e-4)
    with pytest.raises(ValueError, match="focus must be a finite number of at least 0"):
        build_criterion(arguments(w_focus=-1.0))


def test_a_run_logs_it_when_it_counts(trained, scenes, tmp_path):
    train(scenes, tmp_path, "--w_focus", 0.3, "--epochs", 1, "--eval_vis_dir", "")
    entry, = epochs_of(tmp_path)
    assert 0 < entry["focus"] < entry["fusion"]
    usual = list(epochs_of(trained)[0])
    after = usual.index("fusion")
    assert list(entry) == [*usual[:after], "focus", *usual[after:]]
