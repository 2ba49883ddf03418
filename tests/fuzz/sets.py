"""Data sets: tables of referring expressions, and rows of parquet files."""
import functools
import io
import json
import random
import struct
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from material import SIDE, material, read_files, write_files
from mutations import edited, mutate
from pictures import mutate_image
from pycocotools import mask as coco
from rows import encode, make_row
from sandbox import Unmakeable, command

from bert import Tokenizer
from data import MMRISDataset


def table_seeds() -> list[dict]:
    """{file name: records or bytes}."""
    polygon, rle = [2, 2, 12, 2, 12, 9], {"size": [37, 53], "counts": [3, 4, 37 * 53 - 7]}
    packed = coco.encode(np.asfortranarray(np.eye(37, 53, dtype=np.uint8)))["counts"].decode()
    records = [{"image": "0", "expression": "a man", "polygon": polygon},
               {"image": "1.png", "expression": "a car", "polygon": [polygon, [1, 1, 5, 5, 1, 5]]},
               {"image": "0", "expression": "left", "polygon": [[1, 1], [20, 5], [3, 30]]},
               {"image": "1", "expression": "right", "rle": rle},
               {"image": "2", "expression": "both", "rle": {"size": [37, 53], "counts": packed}},
               {"image": "2", "expression": "a mask", "mask": "0.npy"}, {"image": "0", "expression": "its own"}]
    lines = "\n".join(map(json.dumps, records))
    csv = 'image,expression,mask,polygon\n0,a man,,"[2, 2, 12, 2, 12, 9]"\n1.png,"a, b",1.png,\n'
    tsv = "image\texpression\tpolygon\n0\ta man\t[2, 2, 12, 2, 12, 9]\n"
    return [{"t.json": records}, {"t.json": records[:3]}, {"t.json": records[3:]}, {"t.jsonl": lines},
            {"t.csv": csv}, {"t.tsv": tsv}]


def mutate_table(rng: random.Random, value: dict) -> dict:
    (name, content), = value.items()
    if not isinstance(content, bytes) and rng.random() < 0.1:
        content = next(iter(read_back({name: content}).values()))
    return {name: mutate(rng, content)}


def read_back(files: dict) -> dict[str, bytes]:
    """What `write_files` would write."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_files(write_files(Path(folder) / "x", files))
        except Unmakeable:
            return dict.fromkeys(files, b"")


def prepare_table(value: dict, folder: Path):
    write_files(folder / "in", value)
    cells = [make_row(number) for number in range(3)]
    for name, column in (("visible", "visible_image"), ("infrared", "infrared_image")):
        write_files(folder / "in" / name, {f"{i}.png": row[column] for i, row in enumerate(cells)})
    write_files(folder / "in/masks", {"0.npy": cells[0]["segmentation"], "1.png": encode(np.eye(37, 53) > 0)})
    table = str(folder / "in" / next(iter(value)))
    return [command("data/build_parquet.py", table, "--out", str(folder / "out/x.parquet")),
            command("data/build_parquet.py", table, "--out", str(folder / "out"), "--split", "1,1")]


KINDS = {"index": ["int64", "uint8", "string", "float64"], "image_name": ["string", "large_string", "string_view",
         "dictionary", "binary"], "question": ["string", "large_string", "binary", "string_view", "dictionary"],
         "visible_image": ["binary", "large_binary", "binary_view", "string"],
         "infrared_image": ["binary", "large_binary"],
         "segmentation": ["binary", "large_binary", "binary_view", "null"]}


def row_seeds() -> list:
    """Rows with the types of their columns, as a writer would choose them; and files as bytes."""
    tokenizer()  # once for all children
    rows = [make_row(number, 21, 17) for number in range(3)]
    values = [{"rows": rows, "kinds": {name: kinds[0] for name, kinds in KINDS.items()}, "codec": codec, "group": 2}
              for codec in ("snappy", "zstd", "none")]
    return [*values, written_rows(values[0]), written_rows(values[2])]


def mutate_rows(rng: random.Random, value):
    if isinstance(value, bytes):
        if rng.random() < 0.5 and len(value) > 8:  # the footer, where the structure is
            place = max(0, len(value) - struct.unpack("<I", value[-8:-4])[0] - 8)
            return value[:place] + edited(value[place:-8], rng) + value[-8:]
        return edited(value, rng)
    kind = rng.randrange(3)
    if kind == 0:
        name = rng.choice(list(KINDS))
        return value | {"kinds": value["kinds"] | {name: rng.choice(KINDS[name])}}
    if kind == 1 and value["rows"]:  # of one cell, in a way that suits its type
        at, rows = rng.randrange(len(value["rows"])), list(value["rows"])
        if isinstance(rows[at], dict) and rows[at]:
            name = rng.choice(list(rows[at]))
            change = mutate_image if name.endswith("_image") and isinstance(rows[at][name], bytes) else edited
            rows[at] = rows[at] | {name: change(rng, rows[at][name]) if change is mutate_image else
                                   None if rng.random() < 0.2 else edited(rows[at][name], rng)}
        return value | {"rows": rows}
    return value | {"rows": mutate(rng, value["rows"])}


def written_rows(value) -> bytes:
    """The parquet file; pyarrow refuses values that are not of their column's type, with which no file can be made."""
    if isinstance(value, bytes):
        return value
    try:
        columns = dict.fromkeys(name for row in value["rows"] for name in row)
        arrays = []
        for name in columns:
            kind = value["kinds"].get(name)
            cells = [row.get(name) for row in value["rows"]]
            if isinstance(cells[0], str):  # a text of another encoding, as careless writers leave it
                cells = [cell.encode("utf-8", "surrogatepass") if isinstance(cell, str) else cell for cell in cells]
            array = pa.array(cells)
            if kind == "dictionary":
                array = array.cast(pa.string()).dictionary_encode()
            elif kind in ("string", "large_string") and pa.types.is_binary(array.type):
                array = array.cast(pa.large_binary() if kind.startswith("large") else pa.binary()).view(kind)
            elif kind:
                array = array.cast(kind)
            arrays.append(array)
        buffer = io.BytesIO()
        pq.write_table(pa.table(dict(zip(columns, arrays, strict=True))), buffer, row_group_size=value["group"],
                       compression=value["codec"])
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError, AttributeError, LookupError,
            RecursionError) as error:
        raise Unmakeable from error
    return buffer.getvalue()


def prepare_rows(value, folder: Path):
    path = str(write_files(folder / "in", {"x.parquet": written_rows(value)}) / "x.parquet")

    def read(bad_rows: str) -> None:
        dataset = MMRISDataset(path, tokenizer(), SIDE, originals=True, lumas=True, bad_rows=bad_rows)
        list(dataset.names), list(dataset.questions), list(dataset.indices)
        for row in range(min(len(dataset), 10)):
            dataset[row]

    return [lambda: read("stop"), lambda: read("skip"),
            command("data/check_parquet.py", path, "-j", "0", "--out_dir", str(folder / "out/check")),
            command("data/merge_parquet.py", path, "--out", str(folder / "out/x.parquet")),
            command("data/merge_parquet.py", path, path, "--out", str(folder / "out"), "--split", "1,1")]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(str(material() / "bert"))
