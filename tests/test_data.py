"""Reading MM-RIS parquet: what a sample holds, that it is exact, and what is said about data that cannot be used."""
import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bert import Tokenizer
from bert.tiny import write_tiny_bert
from data import MMRISDataset, collate, parquet_rows
from utils.color import destandardise
from utils.errors import InputError

SENTENCES = ["the hot red disc on the left", "the cold square", "a man", "the blue one"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
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


def same_sample(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def error_of(path, tokenizer, row=None):
    with pytest.raises(InputError) as caught:
        dataset = MMRISDataset(str(path), tokenizer, 40)
        if row is not None:
            dataset[row]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("width, height", [(31, 57), (101, 45), (64, 64)])
@pytest.mark.parametrize("kind, mode", [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"),
                                        ("JPEG", "L")])
def test_images_are_what_pillow_makes_of_them(tmp_path, tokenizer, kind, mode, width, height):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    encoded = encode(pixels if mode == "RGBA" else pixels[..., :3].copy(), kind, mode)
    path = write(tmp_path / "a.parquet", [make_row(0) | {"visible_image": encoded, "infrared_image": encoded}])
    sample = MMRISDataset(path, tokenizer, img_size=48)[0]
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    for image in (sample["vis"], sample["ir"]):
        assert image.shape == (3, 48, 48) and image.dtype == torch.float32
        pixels = (destandardise(image) * 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels - np.asarray(expected)).max() < 0.01


def test_images_are_standardised_with_the_imagenet_statistics(tmp_path, tokenizer):
    grey = encode(np.full((8, 8, 3), 51, np.uint8))
    path = write(tmp_path / "a.parquet", [make_row(0) | {"visible_image": grey}])
    vis = MMRISDataset(path, tokenizer, 40)[0]["vis"]
    expected = [(0.2 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert torch.allclose(vis[:, 3, 5], torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_mask_keeps_its_pixels_and_is_resized_by_the_nearest(tmp_path, tokenizer, dtype):
    mask = np.random.default_rng(2).integers(0, 3, (33, 71)).astype(dtype)
    path = write(tmp_path / "a.parquet", [make_row(0, 71, 33) | {"segmentation": npy(mask)}])
    sample = MMRISDataset(path, tokenizer, 40, originals=True)[0]
    truth = (mask > 0).astype(np.uint8)
    assert sample["mask"].dtype == np.uint8 and np.array_equal(sample["mask"], truth)
    assert sample["size"] == (71, 33)
    nearest = np.asarray(Image.fromarray(truth).resize((40, 40), Image.Resampling.NEAREST))
    assert sample["target"].dtype == torch.int64 and np.array_equal(sample["target"], nearest)
    # Pixel centres: the same by hand.
    rows, columns = ((np.arange(40) + 0.5) * side / 40 for side in mask.shape)
    assert np.array_equal(nearest, truth[rows.astype(int)][:, columns.astype(int)])


def test_negative_numbers_are_background(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(0) | {"segmentation": npy(np.array([[-1, 0], [1, 2]], np.int32))}])
    assert MMRISDataset(path, tokenizer, 40, originals=True)[0]["mask"].tolist() == [[0, 0], [1, 1]]


def test_token_ids_are_the_tokenizers(tmp_path, tokenizer):
    rows = [make_row(0), make_row(1) | {"question": "the hot red disc on the left " * 5}]
    dataset = MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40)
    for row, sentence in enumerate(dataset.questions):
        input_ids, attention_mask = tokenizer([sentence])
        assert torch.equal(dataset[row]["input_ids"], input_ids[0])
        assert torch.equal(dataset[row]["attention_mask"], attention_mask[0])
    assert dataset[1]["attention_mask"].sum() == 20


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path, tokenizer):
    rows = [make_row(i) for i in range(7)]
    write(tmp_path / "b.parquet", rows[3:])
    write(tmp_path / "a.parquet", rows[:3])
    (tmp_path / "notes.txt").write_text("not a part")
    dataset = MMRISDataset(str(tmp_path), tokenizer, 40)
    one_file = MMRISDataset(write(tmp_path / "whole", rows), tokenizer, 40)
    assert len(dataset) == 7 and dataset.indices == [100 + i for i in range(7)]
    assert dataset.names == [f"{i}.png" for i in range(7)]
    assert dataset.questions == [row["question"] for row in rows]
    for row in range(7):
        same_sample(dataset[row], one_file[row])


def test_rows_number_the_samples_when_there_is_no_index(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(3)], index=None)
    assert MMRISDataset(path, tokenizer, 40).indices == [0, 1, 2]
    assert not caplog.records


@pytest.mark.parametrize("index, word", [
    ([5, 5, 6], "same number"), ([5, None, 6], "empty"), (["a", "b", "c"], "whole")])
def test_an_index_that_does_not_serve_is_replaced_by_row_numbers_with_a_warning(
        tmp_path, tokenizer, caplog, index, word):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(3)], index=pa.array(index))
    assert MMRISDataset(path, tokenizer, 40).indices == [0, 1, 2]
    assert word in caplog.text and path in caplog.text


@pytest.fixture(params=["small row groups", "small cache", "one large row group"])
def layout(request, monkeypatch):
    """Rows per group under each way of reading."""
    if request.param == "small row groups":
        return 4
    if request.param == "small cache":
        monkeypatch.setattr(parquet_rows, "CACHE_BYTES", 1)
        return 4
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP", 1)
    monkeypatch.setattr(parquet_rows, "STREAM_ROWS", 3)
    return 1000


def test_samples_do_not_depend_on_row_groups_or_the_order_of_reading(tmp_path, tokenizer, layout):
    rows = [make_row(i) for i in range(11)]
    expected = [MMRISDataset(write(tmp_path / "one.parquet", [row]), tokenizer, 40)[0] for row in rows]
    write(tmp_path / "parts_1.parquet", rows[:6], layout)
    write(tmp_path / "parts_2.parquet", rows[6:], layout)
    (tmp_path / "one.parquet").unlink()
    dataset = MMRISDataset(str(tmp_path), tokenizer, 40)
    for row in [*range(11), 10, 3, 9, 0, 5, 5, 4, 6, 2, 10, *range(10, -1, -1)]:
        sample = dataset[row]
        assert sample["row"] == row
        same_sample(sample | {"row": 0}, expected[row])


@pytest.mark.parametrize("workers, start", [(0, None), (2, "fork"), (2, "spawn")])
def test_loading_by_several_processes_gives_the_same_batches(tmp_path, tokenizer, layout, workers, start):
    if start == "spawn" and layout != 4:
        pytest.skip("a new interpreter has the usual limits")
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(9)], layout), tokenizer, 40)
    expected = [dataset[row] for row in range(9)]  # also leaves files open in this process
    order = [4, 2, 8, 0, 1, 7, 3, 6, 5]
    loader = DataLoader(dataset, batch_size=3, sampler=order, num_workers=workers, collate_fn=collate,
                        multiprocessing_context=start)
    assert [row for batch in loader for row in batch["row"].tolist()] == order
    for batch in loader:
        for place, row in enumerate(batch["row"].tolist()):
            for key in ("vis", "ir", "target", "input_ids", "attention_mask"):
                assert torch.equal(batch[key][place], expected[row][key])


def test_a_pickled_data_set_reads_on(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(3)]), tokenizer, 40)
    first = dataset[1]
    same_sample(pickle.loads(pickle.dumps(dataset))[1], first)


def test_the_cache_of_row_groups_is_bounded(tmp_path, monkeypatch):
    rows = [make_row(i) | {"visible_image": bytes(1000)} for i in range(40)]
    monkeypatch.setattr(parquet_rows, "CACHE_BYTES", 10_000)
    reader = parquet_rows.ParquetRows([write(tmp_path / "a.parquet", rows)], ["visible_image"])
    for row in range(40):
        reader.read(row)
        assert sum(table.nbytes for table in reader._cache.values()) <= 10_000


def test_only_large_row_groups_are_warned_of(tmp_path, tokenizer, monkeypatch, caplog):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(40)], 1000)
    MMRISDataset(path, tokenizer, 40)
    assert not caplog.records
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP", 1000)
    with caplog.at_level(logging.WARNING):
        MMRISDataset(path, tokenizer, 40)
    assert len(caplog.records) == 1
    assert f"python data/merge_parquet.py {path} --out" in caplog.text


def test_collate_stacks_tensors_and_lists_the_rest(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(0, 20, 10), make_row(1, 30, 15)])
    dataset = MMRISDataset(path, tokenizer, 40, originals=True)
    batch = collate([dataset[1], dataset[0]])
    assert {key: tuple(batch[key].shape) for key in ("vis", "ir", "target", "input_ids", "attention_mask", "row")} == {
        "vis": (2, 3, 40, 40), "ir": (2, 3, 40, 40), "target": (2, 40, 40),
        "input_ids": (2, 20), "attention_mask": (2, 20), "row": (2,)}
    assert batch["row"].dtype == torch.int64 and batch["row"].tolist() == [1, 0]
    assert [mask.shape for mask in batch["mask"]] == [(15, 30), (10, 20)]
    assert batch["size"] == [(30, 15), (20, 10)]
    assert "mask" not in MMRISDataset(path, tokenizer, 40)[0]


# Swapping sentences


@pytest.mark.parametrize("count", [2, 3, 10, 41])
def test_swapped_sentences_leave_no_sample_with_its_own(tmp_path, tokenizer, count):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(count)])
    dataset = MMRISDataset(path, tokenizer, 40)
    before = list(dataset.questions)
    dataset.shuffle_text(7)
    assert sorted(dataset.questions) == sorted(before)
    assert all(now != then for now, then in zip(dataset.questions, before, strict=True))
    input_ids, attention_mask = tokenizer(dataset.questions)
    assert torch.equal(dataset.input_ids, input_ids) and torch.equal(dataset.attention_mask, attention_mask)
    assert torch.equal(dataset[1]["input_ids"], input_ids[1])
    assert dataset.names == [f"{i}.png" for i in range(count)] and dataset.indices[0] == 100


def test_swapping_is_decided_by_its_seed(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(20)])
    results = []
    for seed in (1, 1, 2):
        dataset = MMRISDataset(path, tokenizer, 40)
        dataset.shuffle_text(seed)
        results.append(dataset.questions)
    assert results[0] == results[1] != results[2]


def test_swapping_prefers_other_words(tmp_path, tokenizer):
    texts = ["a man"] * 10 + ["the cold square"] * 6 + ["the blue one"] * 4
    path = write(tmp_path / "a.parquet", [make_row(i) | {"question": text} for i, text in enumerate(texts)])
    for seed in range(20):
        dataset = MMRISDataset(path, tokenizer, 40)
        dataset.shuffle_text(seed)
        assert all(now != then for now, then in zip(dataset.questions, texts, strict=True))


def test_swapping_equal_sentences_does_what_it_can(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) | {"question": "a man"} for i in range(3)])
    MMRISDataset(path, tokenizer, 40).shuffle_text(0)


def test_one_sentence_cannot_be_swapped(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(0)]), tokenizer, 40)
    with pytest.raises(InputError, match="at least two rows"):
        dataset.shuffle_text(0)


# Data that cannot be used


def test_a_missing_file_is_named(tmp_path, tokenizer):
    assert str(tmp_path / "none.parquet") in error_of(tmp_path / "none.parquet", tokenizer)


def test_a_folder_without_parquet_is_named(tmp_path, tokenizer):
    message = error_of(tmp_path, tokenizer)
    assert str(tmp_path) in message and "no .parquet file" in message


def test_a_file_of_another_kind_is_named(tmp_path, tokenizer):
    (tmp_path / "a.parquet").write_bytes(b"<html>not found</html>")
    message = error_of(tmp_path / "a.parquet", tokenizer)
    assert "a.parquet" in message and "not a parquet file" in message


def test_a_truncated_file_is_named(tmp_path, tokenizer):
    path = Path(write(tmp_path / "a.parquet", [make_row(i) for i in range(8)]))
    path.write_bytes(path.read_bytes()[:-200])
    message = error_of(path, tokenizer)
    assert "a.parquet" in message and "incomplete" in message


def test_damage_within_a_file_is_told_with_the_row(tmp_path, tokenizer):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([make_row(i) for i in range(8)]), path, row_group_size=4, compression="gzip")
    at = pq.ParquetFile(path).metadata.row_group(1).column(2)
    content = bytearray(path.read_bytes())
    start = at.dictionary_page_offset
    content[start:start + at.total_compressed_size] = bytes(at.total_compressed_size)
    path.write_bytes(content)
    message = error_of(path, tokenizer, 5)
    assert "a.parquet: row 5 cannot be read" in message


def test_a_file_that_changed_after_opening_is_not_read_as_if_it_had_not(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(8)])
    dataset = MMRISDataset(path, tokenizer, 40)
    write(path, [make_row(i) for i in range(3, 6)])
    with pytest.raises(InputError, match=r"a\.parquet: the file has changed"):
        dataset[0]


@pytest.mark.parametrize("column", ["image_name", "question", "visible_image", "infrared_image", "segmentation"])
def test_a_missing_column_is_named(tmp_path, tokenizer, column):
    path = write(tmp_path / "a.parquet", [make_row(0)], **{column: None})
    message = error_of(path, tokenizer)
    assert "a.parquet" in message and f"column {column} is missing" in message


@pytest.mark.parametrize("column, wanted", [
    ("image_name", "text"), ("question", "text"), ("visible_image", "bytes"), ("segmentation", "bytes")])
def test_a_column_of_the_wrong_type_is_named(tmp_path, tokenizer, column, wanted):
    path = write(tmp_path / "a.parquet", [make_row(0)], **{column: pa.array([1])})
    message = error_of(path, tokenizer)
    assert "a.parquet" in message and f"column {column} must hold {wanted}, not int64" in message


def test_a_file_without_rows_is_named(tmp_path, tokenizer):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([make_row(0)]).slice(0, 0), path)
    message = error_of(path, tokenizer)
    assert "a.parquet" in message and "no rows" in message


@pytest.mark.parametrize("column", ["image_name", "question", "visible_image", "infrared_image", "segmentation"])
def test_an_empty_cell_is_named(tmp_path, tokenizer, column):
    rows = [make_row(i) for i in range(6)]
    rows[4][column] = None
    write(tmp_path / "a.parquet", [make_row(9)])
    write(tmp_path / "b.parquet", rows)
    message = error_of(tmp_path, tokenizer, 5)  # the row numbers of a file start with 0 in each
    assert "b.parquet: row 4" in message and column in message and "empty" in message


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image", "truncated"])
@pytest.mark.parametrize("column", ["visible_image", "infrared_image"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, tokenizer, column, content):
    rows = [make_row(i) for i in range(3)]
    rows[2][column] = rows[2][column][:300] if content == "truncated" else content
    message = error_of(write(tmp_path / "a.parquet", rows), tokenizer, 2)
    assert f"a.parquet: row 2: {column} cannot be decoded as an image" in message


@pytest.mark.parametrize("content, reason", [
    (b"", "not a .npy array"),
    (b"no array", "not a .npy array"),
    (npy(np.zeros((4, 4)))[:-8], "not a .npy array"),
    (npy(np.zeros((4, 4, 1))), "(height, width)"),
    (npy(np.zeros((0, 4))), "(height, width)"),
    (npy(np.array([["a"]])), "(height, width)"),
])
def test_a_mask_that_cannot_be_read_is_named(tmp_path, tokenizer, content, reason):
    rows = [make_row(i) for i in range(3)]
    rows[1]["segmentation"] = content
    message = error_of(write(tmp_path / "a.parquet", rows), tokenizer, 1)
    assert "a.parquet: row 1: segmentation" in message and reason in message


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_mask_is_refused_and_never_run(tmp_path, tokenizer):
    trap = tmp_path / "trap"
    array = np.empty((1, 1), object)
    array[0, 0] = Payload(trap)
    for content in (npy(array), pickle.dumps(Payload(trap))):
        message = error_of(
            write(tmp_path / "a.parquet", [make_row(0) | {"segmentation": content}]), tokenizer, 0)
        assert "a.parquet: row 0: segmentation is not a .npy array" in message
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists()  # the trap was a working one


def test_an_error_in_a_loading_process_keeps_its_sentence(tmp_path, tokenizer):
    rows = [make_row(0), make_row(1) | {"visible_image": b"no image"}]
    dataset = MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40)
    with pytest.raises(InputError, match=r"a\.parquet: row 1: visible_image cannot be decoded"):
        list(DataLoader(dataset, num_workers=1, collate_fn=collate))


def test_rows_beyond_the_end_are_refused_and_iteration_ends(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(3)]), tokenizer, 40)
    assert [sample["row"] for sample in dataset] == [0, 1, 2]
    for row in (3, -1):
        with pytest.raises(IndexError):
            dataset[row]
