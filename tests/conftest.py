"""Small data and models that several tests share, made once for each run of the suite."""
import contextlib
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parent.parent
README_WEIGHTS = {"lambda_prefusion": 3.0, "w_sobel_vis": 0.0, "w_sobel_ir": 1.0, "w_grad": 1.0, "w_ssim_vis": 0.5,
                  "w_ssim_ir": 0.0, "w_mse_vis": 0.5, "w_mse_ir": 2.0}


def arguments(**changes) -> SimpleNamespace:
    args = {"swin_type": "tiny", "window12": False, "mha": "", "fusion_drop": 0.0, "prefusion_base_ch": 32,
            "ck_bert": "", "pretrained_swin_weights": "", "seg_loss": "ce", **README_WEIGHTS}
    return SimpleNamespace(**(args | changes))


def script(name: str, *arguments, ok: bool = True) -> subprocess.CompletedProcess:
    """Run a script of the project as a person would, from its folder; `ok` demands exit code 0."""
    result = subprocess.run([sys.executable, name, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                            stdin=subprocess.DEVNULL, check=False)
    if ok:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def in_process(name: str, *arguments, ok: bool = True) -> subprocess.CompletedProcess:
    """What `script` does, but for signals, without the seconds in which a new process imports PyTorch."""
    command, code = [name, *map(str, arguments)], 0
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    here, precision, root = os.getcwd(), torch.get_float32_matmul_precision(), logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    try:
        os.chdir(ROOT)
        with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", command),
              mock.patch.object(signal, "signal", lambda *_: None)):
            runpy.run_path(name, run_name="__main__")
    except SystemExit as error:
        code = error.code
    finally:
        os.chdir(here)
        torch.set_float32_matmul_precision(precision)
        root.handlers = handlers
        root.setLevel(level)
    said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))
    if ok:
        assert code == 0, said + complained
    return subprocess.CompletedProcess(command, code, said, complained)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder with a small synthetic data set and its BERT."""
    folder = tmp_path_factory.mktemp("scenes")
    script("data/synthetic.py", "--out", folder, "--train", 16, "--val", 6, "--test", 7, "--size", 64, "--seed", 3)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(scenes) -> str:
    """A BERT folder: two layers, 128 wide."""
    return str(scenes / "bert")


@pytest.fixture
def named_pipe():
    """Make a named pipe under a path. Who opens it to read finds it at its end, where it would wait for ever."""
    paths, over = [], threading.Event()

    def write_nothing(path):
        while not over.is_set():
            os.close(os.open(path, os.O_WRONLY))  # returns when somebody reads

    def make(path):
        os.mkfifo(path)
        paths.append((path, threading.Thread(target=write_nothing, args=(path,), daemon=True)))
        paths[-1][1].start()

    yield make
    over.set()
    for path, thread in paths:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        thread.join()
        os.close(reader)


def training(scenes: Path, output_dir: Path, *more) -> list[str]:
    """The command line of a short training run on `scenes` from random weights; `more` flags override."""
    return [str(word) for word in (
        "train_with_lavt.py", "--train_parquet", scenes / "mm_ris_train.parquet", "--val_parquet",
        scenes / "mm_ris_val.parquet", "--bert_tokenizer", scenes / "bert", "--ck_bert", scenes / "bert",
        "--pretrained_swin_weights", "", "--init_from_lavt_one", "", "--swin_type", "micro", "--prefusion_base_ch", 4,
        "--img_size", 64, "-b", 4, "-j", 0, "--epochs", 2, "--lr_seg", 1e-3, "--lr_pf", 1e-3, "--device", "cpu",
        "--eval_vis_dir", output_dir / "eval_vis", "--output-dir", output_dir, *more)]


def train(scenes: Path, output_dir: Path, *more, ok: bool = True) -> subprocess.CompletedProcess:
    """Carry out `training(...)`."""
    return in_process(*training(scenes, output_dir, *more), ok=ok)


def epochs_of(folder: Path) -> list[dict]:
    """The entries of a run's log.jsonl."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory) -> Path:
    """The output folder of a short training run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "stdout.txt").write_text(script(*training(scenes, folder)).stdout)
    return folder
