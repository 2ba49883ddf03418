"""A training state that is damaged or not of this program, given to --resume."""
import pytest
import torch
from conftest import train

from training.state import changed_settings
from utils import checkpoint


def test_a_changed_byte_in_the_tensors_is_found(trained, scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    moment = content["training"]["optimizer"]["state"][3]["exp_avg"].numpy().tobytes()
    whole = bytearray((trained / "last.pth").read_bytes())
    whole[whole.index(moment) + len(moment) // 2] ^= 16
    (tmp_path / "last.pth").write_bytes(whole)
    result = train(scenes, tmp_path / "out", "--resume", tmp_path / "last.pth", ok=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: --resume: {tmp_path / 'last.pth'} is damaged: the checksum of ")


@pytest.mark.parametrize(("place", "value"), [
    (("progress",), [1]), (("progress", "epoch"), "1"), (("progress", "epoch"), -1), (("progress", "step"), 1.5),
    (("progress", "sums"), {"total": "x"}), (("progress", "history"), [3]), (("progress", "left_out"), "row 3"),
    (("progress", "unknown"), 1), (("rows",), "16"), (("random",), {}), (("random",), [3]),
    (("random", 0, "torch"), torch.zeros(3)),
    (("random", 0, "numpy"), ("MT19937", torch.full((624,), -1), 1, 0, 0.0)),
    (("random", 0, "numpy"), ("MT19937", torch.zeros(5), 1, 0, 0.0)),
    (("random", 0, "python"), (3, (1, 2), None)), (("scaler",), {}), (("scaler", "scale"), "large"),
    (("scaler", "scale"), -1.0), (("scaler", "scale"), 10**400),
    (("progress", "best"), 10**400), (("progress", "sums"), {"total": 10**400}),
    (("optimizer",), {}), (("optimizer", "param_groups"), [{}]), (("optimizer", "state"), [1]),
    (("optimizer", "state", 3, "exp_avg"), torch.zeros(2, 2, 2)), (("optimizer", "state", 3), {"step": 1.0}),
    (("weights",), [1]), ((), "none")])
def test_a_training_state_of_another_form_is_refused(place, value, trained, scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    *path, last = ("training", *place)
    part = content
    for key in path:
        part = part[key]
    part[last] = value
    torch.save(content, tmp_path / "last.pth")
    result = train(scenes, tmp_path / "out", "--epochs", 3, "--resume", tmp_path / "last.pth", ok=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --resume: ") and str(tmp_path / "last.pth") in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def test_a_training_set_of_another_length_is_a_change():
    change, = changed_settings({"epochs": 2}, {"epochs": 2}, 16, 12)
    assert change.startswith("the training set has 12 rows, it had 16")
    assert not changed_settings({"epochs": 2}, {"epochs": 2}, 16, 16)
