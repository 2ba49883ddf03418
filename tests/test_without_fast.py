"""A project whose `models/fast` has been deleted trains and evaluates as before."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, in_process, training


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project's code without that folder."""
    def left_out(folder: str, names: list[str]) -> list[str]:
        here = Path(folder)
        return [name for name in names
                if name.startswith(".") or name in ("runs", "tests") or here / name == ROOT / "models" / "fast"
                or ((here / name).is_file() and not name.endswith((".py", ".jinja")))]

    copy = tmp_path_factory.mktemp("without_fast") / "project"
    shutil.copytree(ROOT, copy, ignore=left_out)
    assert not (copy / "models" / "fast").exists()
    return copy


def run(project: Path, *command) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], cwd=project, capture_output=True, text=True,
                          check=False)


def test_it_trains_and_evaluates_with_the_same_results(project, scenes, trained, tmp_path):
    result = run(project, *training(scenes, tmp_path, "--epochs", 1, "--eval_vis_dir", ""))
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1

    arguments = ["test.py", "--ckpt", trained / "model_best_lavt.pth", "--test_parquet",
                 scenes / "mm_ris_test.parquet", "-j", 0, "--device", "cpu", "--save", "none", "--out_dir"]
    result = run(project, *arguments, tmp_path / "plain")
    assert result.returncode == 0, result.stderr
    in_process(*arguments, tmp_path / "fast")
    plain, fast = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "fast"))
    assert plain["mIoU"] == pytest.approx(fast["mIoU"], abs=0.05)


def test_activation_checkpointing_is_refused_in_one_sentence(project, scenes, tmp_path):
    result = run(project, *training(scenes, tmp_path, "--grad-checkpointing"))
    assert result.returncode == 2
    assert "--grad-checkpointing" in result.stderr and "models/fast" in result.stderr
    assert "Traceback" not in result.stderr
