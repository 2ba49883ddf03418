"""Rows in the MM-RIS schema, made for a test and written to parquet."""
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bert import Tokenizer
from bert.tiny import write_tiny_bert
from data import MMRISDataset
from utils.errors import InputError

SENTENCES = ["the hot red disc on the left", "the cold square", "a man", "the blue one"]


def tiny_tokenizer(folder):
    write_tiny_bert(str(folder), SENTENCES, hidden=16, layers=1, heads=1)
    return Tokenizer(str(folder))


def encode(pixels, kind="PNG", mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def make_row(number, width=53, height=37):
    rng = np.random.default_rng(number)
    return {
        "index": 100 + number,
        "image_name": f"{number}.png",
        "visible_image": encode(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)),
        "infrared_image": encode(rng.integers(0, 256, (height, width), dtype=np.uint8)),
        "question": f"{SENTENCES[number % 4]} {number}",
        "segmentation": npy((rng.random((height, width)) < 0.3).astype(np.uint8) * 255),
    }


def write(path, rows, rows_per_group=4, **columns):
    """Rows to parquet; `columns` replaces whole columns by pyarrow arrays, or drops them with None."""
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, values)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return str(path)


def damaged(path):
    """A file of eight rows whose second row group cannot be unpacked."""
    pq.write_table(pa.Table.from_pylist([make_row(i) for i in range(8)]), path, row_group_size=4, compression="gzip")
    at = pq.ParquetFile(path).metadata.row_group(1).column(2)
    content = bytearray(path.read_bytes())
    start = at.dictionary_page_offset
    content[start:start + at.total_compressed_size] = bytes(at.total_compressed_size)
    path.write_bytes(content)
    return str(path)


def same_sample(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def error_of(path, tokenizer, row=None):
    """The sentence with which opening, or else reading `row`, ends."""
    with pytest.raises(InputError) as caught:
        dataset = MMRISDataset(str(path), tokenizer, 40)
        if row is not None:
            dataset[row]
    message = str(caught.value)
    assert "\n" not in message
    return message
