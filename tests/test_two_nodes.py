"""Two nodes, each with a torchrun of its own on this machine; one of them is lost."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, training

from utils import checkpoint


def start_nodes(*command) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
         f"--rdzv_endpoint=localhost:{port}", f"--rdzv_conf=is_host={int(node == 0)}", "--rdzv_id=1", *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}) for node in (0, 1)]


def lose(node: subprocess.Popen) -> None:
    """End an agent and its training process, as when a machine is switched off."""
    worker = int(Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()[0])
    for pid in (node.pid, worker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.communicate()


def log_of(folder: Path) -> list[dict]:
    """log.jsonl without what a clock says."""
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "samples_per_second")}
            for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_goes_on_after_a_node_is_lost_and_ends_with_the_same_log(scenes, tmp_path):
    """A step is interrupted, that is, after a save in the middle of the first epoch."""
    def run(name: str) -> list[str]:
        return training(scenes, tmp_path / name, "-b", 2, "--epochs", 2, "--eval_vis_dir", "", "--resume", "auto",
                        "--save_every_minutes", 0, "--dist-timeout", 1)

    first, second = start_nodes(*run("interrupted"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "interrupted" / "last.pth").exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ended with exit code {first.wait(0.05)}: {first.communicate()[0]}")
        assert time.monotonic() < deadline
    lose(second)
    output = first.communicate(timeout=90)[0]
    assert first.returncode != 0 and "another process of the job has died" in output
    assert checkpoint.read(str(tmp_path / "interrupted" / "last.pth"))["training"]["progress"]["epoch"] < 2

    for name in ("interrupted", "whole"):
        nodes = start_nodes(*run(name))
        outputs = [node.communicate(timeout=180)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], outputs
        assert ("resuming at epoch" in outputs[0] + outputs[1]) == (name == "interrupted")
    assert len(log_of(tmp_path / "whole")) == 2
    assert log_of(tmp_path / "interrupted") == log_of(tmp_path / "whole")
