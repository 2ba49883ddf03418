"""What a run says of its results: the best checkpoint, objects that are small or not found, files not written."""
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import epochs_of, train
from rows import npy

import trainer
from training import run_record
from utils import checkpoint
from utils.errors import InputError


def validating(results: list[tuple[float, float]], predicted: int = 0):
    """In place of `engine.evaluate`: in each epoch the next (overall IoU, validation loss)."""
    def evaluate(*_args, **_options):
        iou, loss = results.pop(0)
        counts = torch.tensor([[round(iou), 100, predicted, 50, 64 * 64]])
        return {"mIoU": iou, "oIoU": iou, "val_seg": loss, "val_total": loss}, counts
    return evaluate


def test_of_models_that_find_nothing_the_one_with_the_lowest_loss_is_kept(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "evaluate", validating([(0.3, 3.0), (0.0, 2.0), (0.0, 2.5)]))
    result = train(scenes, tmp_path, "--epochs", 3, "--eval_vis_dir", "")
    assert checkpoint.read(str(tmp_path / "model_best_lavt.pth"))["epoch"] == 1
    assert "overall IoU is below 1 %; model_best_lavt.pth now holds epoch 1" in result.stdout
    assert "best overall IoU 0.00, of epoch 1" in result.stdout.splitlines()[-1]
    assert result.stdout.count("WARNING: the model predicts no object at all on the validation set") == 3
    assert "seg_loss bce_area or dice" in result.stdout


def test_small_objects_are_named_before_the_first_epoch(scenes, tmp_path):
    rows = pq.read_table(scenes / "mm_ris_val.parquet").to_pylist()
    for row in rows:
        mask = np.zeros((64, 64), np.uint8)
        mask[20:24, 30:35] = 1
        row["segmentation"] = npy(mask)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "small.parquet")
    result = train(scenes, tmp_path / "out", "--val_parquet", tmp_path / "small.parquet", "--epochs", 1,
                   "--eval_vis_dir", "")
    before, _ = result.stdout.split("epoch 0:")
    assert "WARNING: the first 6 validation samples: 100 % of the objects cover less than 1 % of their image" in before
    assert "the median one has 20 pixels of the networks' 64 x 64" in before
    assert "train with seg_loss bce_area or dice, and with a larger img_size" in before


def test_an_epoch_without_any_finite_loss_is_said_and_survived(scenes, tmp_path):
    result = train(scenes, tmp_path, "--lr_seg", 1e30, "--max_bad_steps", 50, "--eval_vis_dir", "")
    assert "epoch 1: no step with a finite loss" in result.stdout and "could not be written" not in result.stdout
    first, second = epochs_of(tmp_path)
    assert (first["skipped_steps"], second["skipped_steps"], second["total"]) == (3, 4, None)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("name", ["model_best_lavt.pth", "log.jsonl"])
def test_a_run_whose_files_cannot_be_written_fails_and_names_none_that_is_absent(name, scenes, tmp_path, monkeypatch):
    write = run_record.replacing

    def full(path: str):
        if path.endswith(name):
            raise InputError(f"{path}: it cannot be written (No space left on device)")
        return write(path)

    monkeypatch.setattr(run_record, "replacing", full)
    monkeypatch.setattr(checkpoint, "replacing", full)
    result = train(scenes, tmp_path, "--epochs", 1, "--eval_vis_dir", "", ok=False)
    assert result.returncode == 1
    assert f"these files could not be written, see the warnings above: {name}" in result.stderr
    assert f"WARNING: {name} could not be written, training goes on:" in result.stdout
    assert ("in " + str(tmp_path / "model_best_lavt.pth") in result.stdout) == (name == "log.jsonl")


def test_a_best_checkpoint_that_is_not_written_leaves_the_earlier_one_the_best(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "evaluate", validating([(10.0, 2.0), (20.0, 1.5)]))
    save, saved = checkpoint.save, []

    def full_after_the_first(content, path):
        if path.endswith("model_best_lavt.pth"):
            saved.append(path)
            if len(saved) > 1:
                raise InputError(f"{path}: it cannot be written (No space left on device)")
        save(content, path)

    monkeypatch.setattr(checkpoint, "save", full_after_the_first)
    result = train(scenes, tmp_path, "--epochs", 2, "--eval_vis_dir", "", ok=False)
    assert result.returncode == 1 and len(saved) == 2
    assert "best overall IoU 10.00, of epoch 0" in result.stdout.splitlines()[-1]
    assert checkpoint.read(str(tmp_path / "model_best_lavt.pth"))["epoch"] == 0


def test_a_file_that_is_written_after_all_is_no_failure(tmp_path):
    record = run_record.RunRecord(str(tmp_path), "", 0)
    (tmp_path / "last.pth").mkdir()  # no file can take its place
    assert not record.checkpoint("last.pth", {"epoch": 0}) and record.unwritten == ["last.pth"]
    (tmp_path / "last.pth").rmdir()
    assert record.checkpoint("last.pth", {"epoch": 1}) and not record.unwritten
    record.close()


def test_only_the_checkpoints_of_the_latest_epochs_are_kept(tmp_path):
    for epoch in range(4):
        (tmp_path / f"epoch_{epoch:03d}.pth").touch()
    record = run_record.RunRecord(str(tmp_path), "", 0)
    record.keep_latest(2)
    record.close()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_002.pth", "epoch_003.pth"]


def test_the_last_line_names_the_epoch_of_the_best_checkpoint(trained):
    scores = [epoch["oIoU"] for epoch in epochs_of(trained)]
    best = scores.index(max(scores))
    assert (trained / "stdout.txt").read_text().splitlines()[-1] == (
        f"2 of 2 epochs done; best overall IoU {scores[best]:.2f}, of epoch {best}, in "
        f"{trained / 'model_best_lavt.pth'}")
