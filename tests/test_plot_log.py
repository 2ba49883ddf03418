"""utils/plot_log.py draws what training logs, and refuses anything else in a sentence."""
import json

import pytest
from conftest import in_process
from PIL import Image

EPOCH = {"epoch": 0, "total": 1.5, "seg": 0.5, "mIoU": 20.0}


def plot(folder, *more, ok=True):
    return in_process("utils/plot_log.py", folder, *more, "--out", folder / "curves.png", ok=ok)


def write_log(folder, *lines):
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_epochs_without_a_finite_loss_are_left_out_of_the_curve(tmp_path):
    write_log(tmp_path, json.dumps(EPOCH), json.dumps(EPOCH | {"epoch": 1, "total": None}), json.dumps({
        "epoch": 2, "total": 1, "mIoU": 3, "left_out": ["a message"]}))
    plot(tmp_path)
    assert Image.open(tmp_path / "curves.png").width > 500


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2: this is no epoch of a training run"),
    ("[1, 2]", "it holds a list, not an object"),
    ("7", "it holds a int, not an object"),
    ("{}", "it has no 'epoch'"),
    ('{"epoch": 1}', "it has no 'total'"),
    ('{"epoch": 1, "total": NaN}', "'total' is nan, not a finite number"),
    ('{"epoch": 1, "total": -Infinity}', "'total' is -inf, not a finite number"),
    ('{"epoch": 1, "total": [1, 2]}', "'total' is [1, 2], not a finite number"),
    ('{"epoch": 1, "total": 1, "mIoU": "20"}', "'mIoU' is '20', not a finite number"),
    ('{"epoch": true, "total": 1}', "'epoch' is True, not a finite number"),
    ('{"epoch": 1, "total": 1' + "0" * 400 + "}", "not a finite number"),
    ("[" * 100_000, "this is no epoch of a training run"),
    ('{"epoch": "\\u001b[31m", "total": 1}', "'epoch' is '\\x1b[31m', not a finite number")])
def test_what_is_no_log_is_refused_in_one_sentence(line, message, tmp_path):
    write_log(tmp_path, json.dumps(EPOCH), line)
    process = plot(tmp_path, ok=False)
    assert process.returncode == 1
    assert message in process.stderr and len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\xff\xfe", "cannot be read")])
def test_an_empty_or_foreign_file_is_refused_in_one_sentence(content, message, tmp_path):
    (tmp_path / "log.jsonl").write_bytes(content)
    process = plot(tmp_path, ok=False)
    assert process.returncode == 1
    assert message in process.stderr and len(process.stderr.splitlines()) == 1


def test_a_run_may_have_any_name(tmp_path):
    (tmp_path / r"a$\frac$").mkdir()
    write_log(tmp_path / r"a$\frac$", json.dumps(EPOCH))
    plot(tmp_path / r"a$\frac$", tmp_path / r"a$\frac$")
