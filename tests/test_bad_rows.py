"""Data that cannot be used: its error messages, and that rows of it can be left out."""
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rows import damaged, encode, error_of, make_row, npy, tiny_tokenizer, write
from torch.utils.data import DataLoader

from data import BadRow, MMRISDataset, collate
from data.parquet_rows import ReadLimits
from utils.errors import InputError

STREAMED = ReadLimits(few_rows=2, window_bytes=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


# Files


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
    assert "a.parquet: row 5 cannot be read" in error_of(damaged(tmp_path / "a.parquet"), tokenizer, 5)


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


@pytest.fixture
def as_nobody():
    """Root may read anything, so that the test must be someone else for a moment."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_or_folder_that_may_not_be_read_is_named(tokenizer, request, what):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/inner")
        path = write(f"{folder}/inner/a.parquet", [make_row(0)])
        closed = path if what == "file" else os.path.dirname(path)
        os.chmod(closed, 0)
        request.getfixturevalue("as_nobody")
        message = error_of(closed, tokenizer)
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(closed, 0o700)
        assert closed in message and "Permission denied" in message and "read" in message


# Rows


@pytest.mark.parametrize("column", ["image_name", "question", "visible_image", "infrared_image", "segmentation"])
def test_an_empty_cell_is_named(tmp_path, tokenizer, column):
    rows = [make_row(i) for i in range(6)]
    rows[4][column] = None
    write(tmp_path / "a.parquet", [make_row(9)])
    write(tmp_path / "b.parquet", rows)
    message = error_of(tmp_path, tokenizer, 5)  # the row numbers of a file start with 0 in each
    assert "b.parquet: row 4" in message and column in message and "empty" in message


JPEG = encode(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), "JPEG")
BOMB = encode(np.zeros((12_000, 12_000), bool))  # 17 kB


@pytest.mark.parametrize("column", ["visible_image", "infrared_image"])
@pytest.mark.parametrize("content, reason", [
    (b"", "there are 0 bytes"),
    (b"no image\n" * 20, "its format is not known"),
    (b"GIF89a", "its format is not known"),
    (JPEG[:2], "its format is not known"),
    (JPEG[:300], ""),
    (JPEG[:len(JPEG) // 2], "truncated"),
    (JPEG[:-30], "truncated"),
    (encode(np.zeros((90, 90, 3), np.uint8))[:-30], ""),
    (BOMB, "more than 89478485 pixels"),
    (JPEG.replace(b"\x00\x28\x00\x3c\x03", b"\xff\xdc\xff\xdc\x03"), "more than 89478485 pixels"),
    (encode(np.full((4, 4), np.nan, np.float32), "TIFF"), "infinite or NaN"),
])
def test_an_image_that_cannot_be_decoded_is_named_with_the_reason(tmp_path, tokenizer, column, content, reason):
    path = write(tmp_path / "a.parquet", [make_row(0), make_row(1), make_row(2) | {column: content}])
    message = error_of(path, tokenizer, 2)
    assert f"a.parquet: row 2: {column} cannot be decoded as an image: " in message and reason in message
    assert len(message) < len(path) + 150


@pytest.mark.parametrize("content, reason", [
    (b"", "not a .npy array"),
    (b"no array", "not a .npy array"),
    (npy(np.zeros((4, 4)))[:-8], "cut short"),
    (npy(np.zeros((4, 4, 2))), "(height, width)"),
    (npy(np.zeros((1, 1, 4, 4))), "(height, width)"),
    (JPEG[:300], "nor an image"),
    (npy(np.zeros((0, 4))), "with a height and a width, not float64 (0, 4)"),
    (npy(np.array([["a"]])), "an array of numbers with a height and a width"),
    (npy(np.zeros((4, 4), complex)), "an array of numbers with a height and a width"),
    (npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4), }", b"(99999, 99999), }"), "cut short"),
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


@pytest.mark.parametrize("question", ["", "  \n", None])
def test_a_sentence_without_words_is_named_at_opening(tmp_path, tokenizer, question):
    rows = [make_row(0), make_row(1) | {"question": question}]
    assert "a.parquet: row 1: question is empty" in error_of(write(tmp_path / "a.parquet", rows), tokenizer)


def test_rows_beyond_the_end_are_refused_and_iteration_ends(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(3)]), tokenizer, 40)
    assert [sample["row"] for sample in dataset] == [0, 1, 2]
    for row in (3, -1):
        with pytest.raises(IndexError):
            dataset[row]


# Rows left out


@pytest.fixture
def spoilt(tmp_path):
    """Ten rows over two files, of which rows 1, 2, 4, 7 and 8 cannot be used."""
    rows = [make_row(i) for i in range(10)]
    rows[1]["visible_image"] = JPEG[:200]
    rows[2]["question"] = None
    rows[4]["segmentation"] = b"no array"
    rows[7]["question"] = " "
    rows[8]["infrared_image"] = None
    write(tmp_path / "a.parquet", rows[:5])
    write(tmp_path / "b.parquet", rows[5:])
    return str(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_left_out_of_the_batches_and_listed(spoilt, tokenizer, workers):
    dataset = MMRISDataset(spoilt, tokenizer, 40, originals=True, bad_rows="skip")
    assert len(dataset) == 10
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=workers))
    assert [batch["row"].tolist() for batch in batches] == [[0, 3], [5, 6], [9]]
    bad = [message for batch in batches for message in batch["bad"]]
    for message, wanted in zip(bad, (
            "a.parquet: row 1: visible_image cannot be decoded as an image",
            "a.parquet: row 2: question is empty (null)",
            "a.parquet: row 4: segmentation is not a .npy array", "b.parquet: row 2: question is empty (no words)",
            "b.parquet: row 3: infrared_image is empty (null)"), strict=True):
        assert wanted in message and "\n" not in message
    for batch in batches:
        assert all(len(batch[key]) == len(batch["row"]) for key in batch.keys() - {"bad"})
        for place, row in enumerate(batch["row"].tolist()):
            alone = dataset[row]
            assert all(torch.equal(batch[key][place], alone[key]) for key in ("vis", "ir", "target", "input_ids"))


def test_a_batch_of_bad_rows_alone_holds_nothing_else(spoilt, tokenizer):
    dataset = MMRISDataset(spoilt, tokenizer, 40, bad_rows="skip")
    assert dataset[2] == BadRow(2, dataset[2].message) and dataset[8].row == 8
    for samples in (dataset.__getitems__([2, 8]), [dataset[2], dataset[8]]):
        batch = collate(samples)
        assert batch.keys() == {"row", "bad"} and batch["row"].tolist() == [] and len(batch["bad"]) == 2
        assert batch["row"].dtype == torch.int64


def test_good_batches_say_that_nothing_was_left_out(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(2)])
    for bad_rows in ("stop", "skip"):
        dataset = MMRISDataset(path, tokenizer, 40, bad_rows=bad_rows)
        assert collate([dataset[0], dataset[1]])["bad"] == []


@pytest.mark.parametrize("streamed", [False, True])
def test_damage_within_a_file_costs_only_the_rows_it_lies_in(tmp_path, tokenizer, streamed):
    path = damaged(tmp_path / "a.parquet")
    dataset = MMRISDataset(path, tokenizer, 40, bad_rows="skip", limits=STREAMED if streamed else None)
    assert [row for row in range(8) if isinstance(dataset[row], BadRow)] == [4, 5, 6, 7]
    assert "a.parquet: row 5 cannot be read" in dataset[5].message


def test_damage_late_in_a_large_row_group_leaves_the_rows_before_it(tmp_path, tokenizer):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([make_row(i) for i in range(12)]), path, compression="gzip",
                   use_dictionary=False, write_batch_size=1, data_page_size=1)  # a page for every row
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    content = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    content[end - column.total_compressed_size // 4:end] = bytes(column.total_compressed_size // 4)
    path.write_bytes(content)
    dataset = MMRISDataset(str(path), tokenizer, 40, bad_rows="skip", limits=STREAMED)
    bad = [row for row in range(12) if isinstance(dataset[row], BadRow)]
    assert 11 in bad and 0 not in bad and 5 not in bad
    assert not isinstance(dataset[0], BadRow) and isinstance(dataset[11], BadRow)


def test_bad_sentences_are_not_swapped_into_good_rows(spoilt, tokenizer):
    dataset = MMRISDataset(spoilt, tokenizer, 40, bad_rows="skip")
    before = list(dataset.questions)
    dataset.shuffle_text(0)
    assert sorted(dataset.questions) == sorted(before)
    for row, (now, then) in enumerate(zip(dataset.questions, before, strict=True)):
        assert (now == then) == (row in (2, 7))


def test_what_concerns_the_file_stops_all_the_same(tmp_path, tokenizer):
    with pytest.raises(InputError, match="column segmentation is missing"):
        MMRISDataset(write(tmp_path / "a.parquet", [make_row(0)], segmentation=None), tokenizer, bad_rows="skip")
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(8)])
    dataset = MMRISDataset(path, tokenizer, 40, bad_rows="skip")
    write(path, [make_row(i) for i in range(3, 6)])
    with pytest.raises(InputError, match="the file has changed"):
        dataset[0]


def test_another_word_for_bad_rows_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="stop or skip"):
        MMRISDataset(write(tmp_path / "a.parquet", [make_row(0)]), tokenizer, bad_rows="ignore")
