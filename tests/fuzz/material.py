"""What the inputs are made from: a tiny BERT, rows, a checkpoint of tiny networks; and files as dicts."""
import functools
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rows import SENTENCES, make_row
from sandbox import Unmakeable

from bert import build_text_encoder, plain_config
from bert.tiny import write_tiny_bert
from models.architecture import SWIN_SIZES, Architecture, SwinSize
from models.build import assemble
from utils import checkpoint, model_folder

SIDE = 33  # pixels, the smallest that the networks take


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz_material.")


@functools.cache
def material() -> Path:
    """A folder with `bert/`, `data.parquet`, `model.pth` and the same as a folder, `model/`; no input changes it."""
    folder = Path(_folder().name)
    write_tiny_bert(str(folder / "bert"), SENTENCES, hidden=16, layers=1, heads=1)
    pq.write_table(pa.Table.from_pylist([make_row(i) for i in range(6)]), folder / "data.parquet", row_group_size=4)
    SWIN_SIZES["nano"] = SwinSize(8, (1, 1, 1, 1), (1, 1, 1, 1))
    encoder = build_text_encoder(str(folder / "bert"))
    content = checkpoint.pack(assemble(Architecture("nano", prefusion_base_ch=2), encoder), 3, arguments(folder))
    torch.save(content, folder / "model.pth")
    (folder / "model").mkdir()
    model_folder.write_weights(content, str(folder / "model"), torch.bfloat16)
    bert = {"config": plain_config(encoder), "vocabulary": (folder / "bert/vocab.txt").read_text().splitlines()}
    model_folder.write_description(content | {"bert": bert}, str(folder / "model"), dtype="bfloat16")
    return folder


def arguments(folder: Path) -> dict:
    """The `args` of the checkpoint."""
    return {"bert_tokenizer": str(folder / "bert"), "ck_bert": str(folder / "bert"), "img_size": SIDE, "mha": "",
            "swin_type": "micro", "window12": False, "prefusion_base_ch": 2, "epochs": 10, "lr_seg": 5e-5}


def read_files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names or sorted(os.listdir(folder))}


def write_files(folder: Path, files: dict) -> Path:
    """Write what is in `files`, by name: bytes as they are, text in UTF-8, anything else as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        try:
            if "/" in name or name in ("", ".", ".."):
                raise ValueError("no plain name")
            text = content if isinstance(content, bytes | str) else json.dumps(content)
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise Unmakeable from error
    return folder
