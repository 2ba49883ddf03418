"""A run that is killed, stopped or short of disk space, and resumed."""
import fcntl
import json
import os
import pty
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tty
from pathlib import Path

import pytest
import torch
from conftest import ROOT, script, train, training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import checkpoint

LENGTH = ("--epochs", 3, "--eval_vis_dir", "", "--seed", 4)


class Run(subprocess.Popen):
    """A training run in a terminal, where its progress bars move."""

    def __init__(self, scenes, folder: Path, *more):
        self.terminal, its_end = pty.openpty()
        tty.setraw(its_end)  # what is printed comes as it is
        fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))  # rows, columns
        super().__init__([sys.executable, "-u", *training(scenes, folder, *LENGTH, *more)], cwd=ROOT, stdout=its_end,
                         stderr=its_end, start_new_session=True)
        os.close(its_end)

    def read(self) -> bytes:
        """What the run prints next; nothing once it has ended."""
        try:
            return os.read(self.terminal, 1)
        except OSError:  # Linux's way to say so
            return b""

    def wait_for(self, updates: int) -> None:
        """Return when the progress bars have moved so often, or when the run has ended."""
        while updates > 0 and (byte := self.read()):
            updates -= byte == b"\r"

    def finish(self) -> str:
        """Wait for the run to end; the rest of what it printed."""
        output = b"".join(iter(self.read, b""))
        os.close(self.terminal)
        self.wait()
        return output.decode()


def kill_and_resume(scenes, folder: Path, workers: int, chance: random.Random) -> str:
    """Kill a run at an arbitrary point and resume it; where it resumed, in words."""
    process = Run(scenes, folder, "-j", workers, "--save_every_minutes", 0)
    process.wait_for(chance.randint(1, 22))
    os.killpg(process.pid, signal.SIGKILL)
    process.finish()
    resumed = train(scenes, folder, *LENGTH, "-j", workers, "--resume", "auto")
    return next((line for line in resumed.stdout.splitlines() if "resuming at" in line), "nothing saved yet")


def record(folder: Path) -> list[dict]:
    """The log without what depends on time."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "samples_per_second")}
            for line in lines]


def assert_same_outcome(one: Path, other: Path) -> None:
    assert record(one) == record(other)
    for name in ("last.pth", "model_best_lavt.pth"):
        first, second = (checkpoint.read(str(folder / name)) for folder in (one, other))
        for part in ("model", "prefusion_model", "bert_model"):
            assert all(torch.equal(tensor, second[part][key]) for key, tensor in first[part].items()), (name, part)


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(scenes, folder, *LENGTH)
    return folder


@pytest.mark.parametrize(("workers", "seed"), [(0, 1), (0, 2), (2, 3)])
def test_a_killed_run_resumes_to_the_same_weights_and_log(workers, seed, undisturbed, scenes, tmp_path):
    print(kill_and_resume(scenes, tmp_path, workers, random.Random(seed)))
    assert_same_outcome(undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "updates"), [(signal.SIGTERM, 3), (signal.SIGINT, 9), (signal.SIGUSR1, 2)])
def test_a_signal_saves_and_says_how_to_resume(number, updates, undisturbed, scenes, tmp_path):
    """The scheduler signals the whole process group, the processes that load data included."""
    process = Run(scenes, tmp_path, "-j", 1)
    process.wait_for(updates)
    os.killpg(process.pid, number)
    output = process.finish()
    assert process.returncode == 128 + number, output
    assert f"stopped by {number.name}; the run so far is in {tmp_path / 'last.pth'}; to resume it:" in output
    assert "Traceback" not in output
    words = output.strip().splitlines()[-1].replace("''", "").split()
    assert words[:2] == ["python", "train_with_lavt.py"] and words[-2:] == ["--resume", "auto"]
    if number == signal.SIGTERM:  # the others would show nothing new
        train(scenes, tmp_path, *LENGTH, "--resume", "auto")
        assert_same_outcome(undisturbed, tmp_path)


def test_everything_in_use_is_restored(scenes, tmp_path):
    """Averaged weights, accumulated steps, float16's scale and --keep, over a stop in the middle of an epoch."""
    flags = (*LENGTH, "--model-ema-decay", 0.9, "-b", 2, "--grad-accum-steps", 2, "--amp", "--amp-dtype", "float16",
             "--keep", 2, "--grad_clip", 1, "--freeze_bert", "--epochs", 2, "--img_size", 40)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(scenes, whole, *flags)
    process = Run(scenes, parts, *flags)
    process.wait_for(4)
    process.send_signal(signal.SIGTERM)
    process.finish()
    train(scenes, parts, *flags, "--resume", "auto")
    assert_same_outcome(whole, parts)
    assert sorted(path.name for path in parts.glob("epoch_*.pth")) == ["epoch_000.pth", "epoch_001.pth"]
    raw, averaged = (checkpoint.read(str(parts / "last.pth")) for _ in range(2))
    assert not torch.equal(raw["training"]["weights"]["prefusion_model"]["net.outc.weight"],
                           averaged["prefusion_model"]["net.outc.weight"])


def test_on_a_full_disk_training_ends_with_an_error_and_the_old_file_stays(undisturbed, scenes, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "last.pth").read_bytes()
    limit = 10 * 2 ** 20  # bytes; a checkpoint has more
    result = subprocess.run(
        [sys.executable, *training(scenes, tmp_path, *LENGTH, "--epochs", 4, "--resume", "auto")], cwd=ROOT,
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1, result.stderr
    assert "error: --output-dir: these files could not be written, see the warnings above: " in result.stderr
    assert "last.pth" in result.stderr.splitlines()[-1]
    assert "WARNING: last.pth could not be written, training goes on:" in result.stdout
    assert (tmp_path / "last.pth").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]
    assert len(record(tmp_path)) == 4


def test_tensorboard_holds_no_step_twice_and_the_rates_of_all(undisturbed, scenes, tmp_path):
    process = Run(scenes, tmp_path, "--save_every_minutes", 0, "--print-freq", 1, "--lr_pf", 3e-3)
    process.wait_for(8)
    process.kill()
    process.finish()
    train(scenes, tmp_path, *LENGTH, "--print-freq", 1, "--lr_pf", 3e-3, "--resume", "auto")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss/total")] == list(range(1, 13))
    for name, rate in (("lr_seg", 1e-3), ("lr_pf", 3e-3)):  # after each step: what the next one uses
        assert [event.value for event in board.Scalars(f"learning_rate/{name}")] == pytest.approx(
            [rate * (1 - step / 12) ** 0.9 for step in range(1, 13)], abs=1e-9)


def test_nothing_to_resume_starts_anew_and_a_finished_run_ends_at_once(undisturbed, scenes, tmp_path):
    result = train(scenes, undisturbed, *LENGTH, "--resume", "auto")
    assert "this run is finished; raise --epochs" in result.stdout and "epoch 2: loss" not in result.stdout
    result = train(scenes, tmp_path, "--epochs", 1, "--resume", "auto")
    assert "resuming at" not in result.stdout and len(record(tmp_path)) == 1


def test_what_differs_from_the_run_so_far_is_said(undisturbed, scenes, tmp_path):
    result = train(scenes, tmp_path, *LENGTH, "--epochs", 4, "--lr_seg", 2e-4, "-b", 8, "--resume",
                   undisturbed / "last.pth")
    for words in ("epochs is 4, it was 3", "lr_seg is 0.0002, it was 0.001", "batch_size is 8, it was 4"):
        assert f"WARNING: this run differs from the one it resumes: {words}" in result.stdout
    assert len(record(tmp_path)) == 4
    assert record(tmp_path)[3]["lr_seg"] == pytest.approx(2e-4 * 0.25 ** 0.9)
    assert (tmp_path / "model_best_lavt.pth").exists()  # though an earlier epoch, in the other folder, may be better


def test_a_file_that_cannot_be_resumed_is_named(undisturbed, scenes, tmp_path):
    whole = (undisturbed / "last.pth").read_bytes()
    (tmp_path / "last.pth").write_bytes(whole[:len(whole) // 2])
    for path, flags, code, message in (
            (tmp_path / "last.pth", [], 1, "last.pth cannot be read; it is damaged"),
            (undisturbed / "model_best_lavt.pth", [], 1, "holds weights but no state of a training run"),
            (tmp_path / "absent.pth", [], 2, "--resume: there is no file"),
            (undisturbed / "last.pth", ["--prefusion_base_ch", 8], 1, "'prefusion_model' in"),
            (undisturbed / "last.pth", ["--freeze_bert"], 1, "trained other parameters"),
            (undisturbed / "last.pth", ["--amsgrad"], 1, "amsgrad differs")):
        result = train(scenes, tmp_path / "out", *LENGTH, *flags, "--resume", path, ok=False)
        assert result.returncode == code, result.stderr
        assert message in result.stderr and "Traceback" not in result.stderr


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_lives(scenes, tmp_path):
    process = Run(scenes, tmp_path, "--epochs", 1000, "-j", 1)
    process.wait_for(2)
    second = train(scenes, tmp_path, *LENGTH, ok=False)
    assert second.returncode == 2
    assert f"--output-dir: another training run is writing to {str(tmp_path)!r}" in second.stderr
    process.kill()
    process.wait()  # its worker process lives on for a moment
    train(scenes, tmp_path, *LENGTH, "--epochs", 1)
    process.finish()


def test_a_checkpoint_can_be_evaluated_without_training(undisturbed, scenes, tmp_path):
    best = max(epoch["oIoU"] for epoch in record(undisturbed))
    result = train(scenes, tmp_path / "absent", "--eval_only", "--resume", undisturbed / "model_best_lavt.pth")
    line = next(line for line in result.stdout.splitlines() if line.startswith("oIoU"))
    assert float(line.split()[1]) == pytest.approx(best, abs=0.005)
    assert not (tmp_path / "absent").exists()
    result = script(*training(scenes, tmp_path, "--eval_only"), ok=False)
    assert result.returncode == 2 and "--eval_only: name the checkpoint" in result.stderr
