"""Large row groups are copied once into small ones, so that training reads rows in any order."""
import logging
import multiprocessing
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import damaged, make_row, same_sample, tiny_tokenizer, write

from data import BadRow, MMRISDataset, epoch_order, row_cache, training_loader
from data.parquet_rows import ReadLimits
from data.row_cache import cache_path, remove_copies
from utils.errors import InputError

LIMITS = ReadLimits(few_rows=2, small_bytes=1, window_bytes=20_000)
ROWS = 11


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data" / "a.parquet", [make_row(i) for i in range(ROWS)], 1000)


def opened(path, tokenizer, **options):
    return MMRISDataset(path, tokenizer, 40, originals=True, limits=LIMITS, **options)


@pytest.mark.parametrize("folder", ["", "cache"])
def test_a_copy_makes_the_order_a_full_permutation_and_changes_no_sample(path, tokenizer, tmp_path, folder):
    plain = opened(path, tokenizer)
    cached = opened(path, tokenizer, cache_dir=folder and str(tmp_path / folder))
    assert np.array_equal(epoch_order(cached, 3, 1), np.random.default_rng([3, 1]).permutation(ROWS))
    assert not np.array_equal(epoch_order(plain, 3, 1), epoch_order(cached, 3, 1))
    for row in (5, 0, 10, 3):
        one, other = cached[row], plain[row]
        assert np.array_equal(one.pop("mask"), other.pop("mask"))
        same_sample(one, other)
    copies = os.listdir(tmp_path / folder if folder else os.path.dirname(path))
    assert sorted(name for name in copies if name != "a.parquet") == [
        os.path.basename(cache_path(path, folder and str(tmp_path / folder)))]
    assert len(opened(os.path.dirname(path), tokenizer)) == ROWS  # the copy is no part of the folder's data


def test_evaluation_needs_no_copy_and_small_row_groups_have_none(path, tokenizer, tmp_path):
    opened(path, tokenizer)
    MMRISDataset(path, tokenizer, 40, cache_dir="")  # under the usual limits
    assert os.listdir(os.path.dirname(path)) == ["a.parquet"]


def test_a_copy_is_used_again_until_the_file_changes(path, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    opened(path, tokenizer, cache_dir="")
    first = os.stat(cache_path(path, "")).st_ino
    opened(path, tokenizer, cache_dir="", masks=False)
    assert os.stat(cache_path(path, "")).st_ino == first and caplog.text.count("copy in small ones") == 1
    write(path, [make_row(i) for i in range(20, 20 + ROWS)], 1000)
    changed = opened(path, tokenizer, cache_dir="")
    assert caplog.text.count("copy in small ones") == 2
    expected = opened(write(os.path.join(os.path.dirname(path), "b"), [make_row(27)]), tokenizer)[0]
    assert np.array_equal(changed[7]["mask"], expected["mask"])


def test_another_time_or_size_alone_makes_a_copy_out_of_date(path, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    opened(path, tokenizer, cache_dir="")
    later = os.stat(path).st_mtime_ns + 10 ** 9
    os.utime(path, ns=(later, later))
    opened(path, tokenizer, cache_dir="")
    assert caplog.text.count("copy in small ones") == 2
    write(path, [make_row(i) for i in range(ROWS + 1)], 1000)
    os.utime(path, ns=(later, later))
    assert opened(path, tokenizer, cache_dir="")[ROWS]["row"] == ROWS
    assert caplog.text.count("copy in small ones") == 3


def test_files_of_one_name_have_copies_of_their_own(path, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "a.parquet", [make_row(30 + i) for i in range(ROWS)], 1000)
    for file in (path, other, path, other):
        opened(file, tokenizer, cache_dir=str(tmp_path / "cache"))
    assert caplog.text.count("copy in small ones") == 2 and len(os.listdir(tmp_path / "cache")) == 2


def test_half_a_copy_is_written_again(path, tokenizer):
    opened(path, tokenizer, cache_dir="")
    copy = cache_path(path, "")
    with open(copy, "rb+") as file:
        file.truncate(os.path.getsize(copy) - 50)
    assert opened(path, tokenizer, cache_dir="")[3]["row"] == 3


def test_copies_are_removed_on_request(path, tokenizer, tmp_path):
    for folder in ("", str(tmp_path / "cache")):
        opened(path, tokenizer, cache_dir=folder)
        remove_copies([path, path + ".other"], folder)
        assert not os.path.exists(cache_path(path, folder))


def test_messages_name_the_file_and_not_the_copy(path, tokenizer):
    write(path, [make_row(i) | ({"visible_image": b"no image"} if i == 7 else {}) for i in range(ROWS)], 1000)
    with pytest.raises(InputError, match=r"a\.parquet: row 7: visible_image"):
        opened(path, tokenizer, cache_dir="")[7]


@pytest.mark.parametrize("structs", [False, True])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(structs, path, tokenizer, monkeypatch):
    if structs:  # as other programs write images: a column of several leaves
        rows = [make_row(i) for i in range(ROWS)]
        write(path, rows, 1000, **{name: pa.array([{"bytes": row[name], "path": None} for row in rows])
                                   for name in ("visible_image", "infrared_image", "segmentation")})
    usage = shutil.disk_usage(path)._replace(free=1000)
    monkeypatch.setattr(row_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"cache_dir: .*a\.parquet\.row_cache: .*GB are free.*merge_parquet") as caught:
        opened(path, tokenizer, cache_dir="")
    assert caught.value.argument == "cache_dir" and os.listdir(os.path.dirname(path)) == ["a.parquet"]


def test_a_disk_that_becomes_full_is_a_sentence_and_leaves_nothing(path, tokenizer, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(InputError, match=r"cache_dir: .*row_cache.*No space left on device.*merge_parquet"):
        opened(path, tokenizer, cache_dir="")
    assert os.listdir(os.path.dirname(path)) == ["a.parquet"]


def test_a_folder_that_cannot_be_made_is_a_sentence(path, tokenizer):
    with pytest.raises(InputError, match="cache_dir: .*cannot be written"):
        opened(path, tokenizer, cache_dir=os.path.join(path, "within a file"))


def test_a_file_that_cannot_be_copied_is_used_as_it_is_with_a_warning(tmp_path, tokenizer, caplog):
    path = damaged(tmp_path / "a.parquet")
    dataset = opened(path, tokenizer, cache_dir="", bad_rows="skip")
    assert "cannot be read to its end" in caplog.text and dataset.windows() is not None
    assert [row for row in range(8) if isinstance(dataset[row], BadRow)] == [4, 5, 6, 7]
    assert os.listdir(tmp_path) == ["a.parquet"]


def open_in_a_process(path, tokenizer, written, together):
    bar = row_cache.progress_bar
    row_cache.progress_bar = lambda **options: (written.put(1), bar(**options))[1]
    row_cache.cache_path = lambda *arguments: (together.wait(), cache_path(*arguments))[1]
    opened(path, tokenizer, cache_dir="")


def test_processes_that_need_the_same_copy_write_it_once(path, tokenizer):
    context = multiprocessing.get_context("fork")
    written = context.Queue()
    arguments = (path, tokenizer, written, context.Barrier(3))
    processes = [context.Process(target=open_in_a_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3 and written.get() == 1 and written.empty()


def test_shuffling_within_parts_is_warned_of(path, tokenizer, caplog):
    training_loader(opened(path, tokenizer, cache_dir=""), 2)
    assert not caplog.records
    training_loader(opened(path, tokenizer), 2)
    assert "shuffled only within parts" in caplog.text and "merge_parquet" in caplog.text
