"""Running test.py, and reading what it leaves."""
import contextlib
import csv
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import ROOT
from PIL import Image

from utils import errors

SPEC = importlib.util.spec_from_file_location("evaluation", ROOT / "test.py")
EVALUATION = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(EVALUATION)


def write_wide_scenes(scenes: Path, path: Path) -> Path:
    """The test scenes with images of 100×70 px, without `index`, one of them with a name that points elsewhere."""
    rows = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()
    for row in rows:
        for column in ("visible_image", "infrared_image"):
            buffer = io.BytesIO()
            Image.open(io.BytesIO(row[column])).convert("RGB").resize((100, 70)).save(buffer, "PNG")
            row[column] = buffer.getvalue()
        mask = np.asarray(Image.fromarray(np.load(io.BytesIO(row["segmentation"])) * 255).resize((100, 70), 0))
        buffer = io.BytesIO()
        np.save(buffer, mask)
        row["segmentation"] = buffer.getvalue()
        del row["index"]
    rows[0]["image_name"] = "../../outside"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def arguments(trained, parquet, out_dir, *more) -> list[str]:
    return [*map(str, ("--ckpt", trained / "last.pth", "--test_parquet", parquet, "--out_dir", out_dir,
                       "-j", 0, "--device", "cpu", *more))]


def evaluate(trained, parquet, out_dir, *more, ok=True) -> subprocess.CompletedProcess:
    """What `script("test.py", ...)` does, without the seconds of a new process."""
    command, code = ["test.py", *arguments(trained, parquet, out_dir, *more)], 0
    out, err, here, root = io.StringIO(), io.StringIO(), os.getcwd(), logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    try:
        os.chdir(ROOT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", command):
            errors.run(EVALUATION.main)
    except SystemExit as error:
        code = error.code
    finally:
        os.chdir(here)
        root.handlers = handlers
        root.setLevel(level)
    if ok:
        assert code == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def read_samples(out_dir) -> list[dict]:
    with (out_dir / "per_sample.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_metrics(out_dir) -> dict:
    return json.loads((out_dir / "metrics.json").read_text())


def fused_stem(rows: list[dict], index: int) -> str:
    names = [row["image_name"] for row in rows]
    return f"{names[index]}_{index}" if names.count(names[index]) > 1 else names[index]
