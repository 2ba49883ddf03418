"""benchmarks/study.py: nothing that is finished is lost, and the tables say what the evaluations say."""
import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

TRAIN = """
import json, os, sys
folder = sys.argv[sys.argv.index("--output-dir") + 1]
name = os.path.basename(folder)
open("calls", "a").write(f"train {name}\\n")
if os.path.exists(f"block_{name}"):  # a training that lasts until it is stopped
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(open("stopped", "a").write(f"{name}\\n") * 0 + 143))
    open(f"block_{name}", "w").write("started")
    signal.pause()
open(f"{folder}/log.jsonl", "w").write("{}\\n" * int(sys.argv[sys.argv.index("--epochs") + 1]))
"""
TEST = """
import os, shutil, sys
folder = sys.argv[sys.argv.index("--out_dir") + 1]
open("calls", "a").write(f"test {os.path.basename(os.path.dirname(folder))}\\n")
if os.path.exists("broken"):
    sys.exit("error: the disk is full")
shutil.copytree("results", folder)
"""
SCENES = """
import os, sys
os.makedirs(sys.argv[sys.argv.index("--out") + 1])
open("calls", "a").write("scenes\\n")
"""


def write_results(folder, iou, contrast=50.0, swapped=40.0):
    """What test.py leaves of samples of 1000 px with these IoUs, two to an image."""
    (folder / "fusion").mkdir(parents=True)
    count = len(iou)
    table = pd.DataFrame({
        "index": range(count), "image_name": [f"{row // 2}.png" for row in range(count)], "question": "the car",
        "iou": iou, "intersection": [round(1000 * value) for value in iou], "union": 1000, "Qabf": 0.6, "VIF": 0.7,
        "iou_swapped": 0.1, "iou_empty": 0.0, "contrast": contrast, "contrast_swapped": swapped, "contrast_empty": 0.0,
        "change_inside": 8.0, "change_outside": 2.0})
    table.to_csv(folder / "per_sample.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"mIoU": 100 * float(np.mean(iou)), "num_samples": count}))
    for row in range(count):
        Image.new("RGB", (8, 8)).save(folder / "fusion" / f"{row // 2}.png_{row}.jpg")
    return str(folder)


@pytest.fixture
def project(tmp_path):
    """A folder with scripts in place of those that the study calls."""
    (tmp_path / "data").mkdir()
    for name, text in (("train_with_lavt.py", TRAIN), ("test.py", TEST), ("data/synthetic.py", SCENES)):
        (tmp_path / name).write_text(text)
    write_results(tmp_path / "results", [0.5] * 8)
    return tmp_path


def command(project, *flags):
    start = (f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; import study; study.ROOT = {str(project)!r}; "
             "from utils.errors import run; run(study.main)")
    return [sys.executable, "-c", start, "--variants", "joint,visible", "--jobs", "1", "--out", project / "out", *flags]


def study(project, *flags):
    return subprocess.run(command(project, *flags), capture_output=True, text=True, timeout=100, check=False)


def calls(project) -> list[str]:
    path = project / "calls"
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def test_a_study_makes_a_table_and_repeats_nothing_that_is_finished(project):
    result = study(project, "--seeds", "2")
    assert result.returncode == 0, result.stderr
    assert "| joint | 50.00 (50.00 to 50.00) |" in result.stdout
    assert {"table.md", "study.json", "study.png"} <= set(os.listdir(project / "out"))
    assert calls(project) == ["scenes"] + [f"{what} {name}" for name in ("joint_0", "visible_0", "joint_1", "visible_1")
                                           for what in ("train", "test")]
    assert study(project, "--seeds", "3").returncode == 0
    assert calls(project) == ["train joint_2", "test joint_2", "train visible_2", "test visible_2"]


def test_a_study_that_failed_says_why_and_goes_on_without_training_again(project):
    (project / "broken").touch()
    result = study(project, "--seeds", "1")
    assert result.returncode == 1 and "error: the disk is full" in result.stderr and "Traceback" not in result.stderr
    assert calls(project) == ["scenes", "train joint_0", "test joint_0"]
    (project / "broken").unlink()
    assert study(project, "--seeds", "1").returncode == 0
    assert calls(project) == ["test joint_0", "train visible_0", "test visible_0"]


def test_a_study_that_is_stopped_lets_its_trainings_save_and_goes_on(project):
    os.mkfifo(project / "block_visible_0")
    running = subprocess.Popen(command(project, "--seeds", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    assert (project / "block_visible_0").read_text() == "started"  # waits for it
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command goes on from here" in output and "Traceback" not in output
    assert (project / "stopped").read_text() == "visible_0\n"
    (project / "block_visible_0").unlink()
    calls(project)
    assert study(project, "--seeds", "1").returncode == 0
    assert calls(project) == ["train visible_0", "test visible_0"]


def test_a_folder_of_another_study_and_unknown_variants_are_refused(project):
    assert study(project, "--seeds", "1").returncode == 0
    result = study(project, "--seeds", "1", "--epochs", "2")
    assert result.returncode == 2 and "other settings (epochs)" in result.stderr
    assert study(project, "--variants", "jiont").returncode == 2


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("study_report")


def test_differences_are_taken_in_pairs_and_seeds_are_shown(report, tmp_path):
    iou = np.random.default_rng(0).integers(200, 800, 40) / 1000
    folders = {(variant, seed): write_results(tmp_path / f"{variant}{seed}", iou + gain + seed / 100)
               for variant, gain in (("joint", 0.0), ("average", -0.1)) for seed in (0, 1)}
    table = report.write_report(folders, str(tmp_path))
    mean = 100 * iou.mean()
    assert f"| joint | {mean + 0.5:.2f} ({mean:.2f} to {mean + 1:.2f}) |" in table
    assert f"| average | {mean - 9.5:.2f} ({mean - 10:.2f} to {mean - 9:.2f}) |" in table
    assert "| average | -10.00 [-10.00, -10.00] |" in table.partition("minus joint: mIoU")[2]
    stored = json.loads((tmp_path / "study.json").read_text())
    low, high = stored["figures"]["joint"]["mIoU"]["interval_95"]
    assert low < mean < high and high - low > 2  # over images, which differ; the pairs do not
    assert stored["minus joint"]["average"]["mIoU"]["by_seed"] == pytest.approx({"0": -10, "1": -10})


def test_the_contrast_counts_where_it_was_measured(report, tmp_path):
    contrast, swapped = [50, 50, 30, np.nan], [40, 60, 20, np.nan]
    folders = {("joint", 0): write_results(tmp_path / "run", [0.5] * 4, contrast, swapped)}
    report.write_report(folders, str(tmp_path))
    figures = json.loads((tmp_path / "study.json").read_text())["figures"]["joint"]
    assert figures["own larger"]["mean"] == pytest.approx(100 * 2 / 3)
    assert figures["contrast"]["mean"] == pytest.approx(130 / 3)
    assert figures["mIoU swapped"]["mean"] == pytest.approx(10)


def test_without_an_effect_of_the_sentence_there_is_no_share_of_larger_contrasts(report, tmp_path):
    folders = {("joint", 0): write_results(tmp_path / "a", [0.5] * 4),
               ("average", 0): write_results(tmp_path / "b", [0.5] * 4, 50.0, 50.0)}
    table = report.write_report(folders, str(tmp_path))
    assert table.rstrip().endswith(" 0.00 | - |") or table.rstrip().endswith("| 0 | - |")
    assert "own larger" not in json.loads((tmp_path / "study.json").read_text())["figures"]["average"]
