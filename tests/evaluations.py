"""Running test.py, and reading what it leaves."""
import csv
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import in_process
from PIL import Image


def write_wide_scenes(scenes: Path, path: Path) -> Path:
    """The test scenes with images of 100×70 px, without `index`, the first with a name that points elsewhere."""
    rows = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()
    for number, row in enumerate(rows):
        for column in ("visible_image", "infrared_image"):
            buffer = io.BytesIO()
            image = Image.open(io.BytesIO(row[column])).convert("RGB").resize((100, 70))
            if number == 0:  # another name, another picture
                image.paste("white", (0, 0, 9, 9))
            image.save(buffer, "PNG")
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
    """Carry out test.py."""
    return in_process("test.py", *arguments(trained, parquet, out_dir, *more), ok=ok)


def read_samples(out_dir) -> list[dict]:
    with (out_dir / "per_sample.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_metrics(out_dir) -> dict:
    return json.loads((out_dir / "metrics.json").read_text())


def fused_stem(rows: list[dict], index: int) -> str:
    names = [row["image_name"] for row in rows]
    return f"{names[index]}_{index}" if names.count(names[index]) > 1 else names[index]
