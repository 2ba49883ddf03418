"""The order of a training epoch: every row once, the same for the same seed and epoch, and fast to read."""
import numpy as np
import pyarrow.parquet as pq
import pytest
from rows import make_row, write

from data import epoch_order, parquet_rows
from data.parquet_rows import ParquetRows, ReadLimits


@pytest.fixture(scope="module")
def rows():
    return [make_row(i, 12, 9) for i in range(60)]


@pytest.fixture
def reader(tmp_path, rows):
    """Opens a file of `rows_per_group` in which everything above two rows is large, and half of it a window."""
    def open_(rows_per_group):
        path = write(tmp_path / f"{rows_per_group}.parquet", rows, rows_per_group)
        metadata = pq.ParquetFile(path).metadata
        columns = [metadata.row_group(number).column(2) for number in range(metadata.num_row_groups)]
        assert {column.path_in_schema for column in columns} == {"visible_image"}
        size = sum(column.total_uncompressed_size for column in columns)
        return ParquetRows([path], ["visible_image"], ReadLimits(2, 1, size // 4))
    return open_


def test_small_row_groups_are_read_in_numpys_own_permutation(tmp_path, rows):
    reader = ParquetRows([write(tmp_path / "a.parquet", rows, 16)], ["visible_image"])
    for seed, epoch in ((0, 0), (0, 1), (7, 3)):
        assert np.array_equal(epoch_order(reader, seed, epoch), np.random.default_rng([seed, epoch]).permutation(60))


@pytest.mark.parametrize("rows_per_group", [7, 25, 60])
def test_every_row_comes_once_and_the_order_rests_on_seed_and_epoch_alone(reader, rows_per_group):
    opened = reader(rows_per_group)
    orders = [epoch_order(opened, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(60))
        assert order.tolist() != sorted(order.tolist())
    assert len({order.tobytes() for order in orders}) == 3
    assert np.array_equal(epoch_order(reader(rows_per_group), 0, 0), orders[0])


@pytest.mark.parametrize("rows_per_group", [7, 25, 60])
@pytest.mark.parametrize("stride", [1, 3])
def test_each_row_group_is_read_once_in_an_epoch_whatever_its_size_and_the_stride(
        reader, rows, rows_per_group, stride, monkeypatch):
    opened = reader(rows_per_group)
    begun = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def read_row_group(self, number, **options):
            begun.append(number)
            return self.file.read_row_group(number, **options)

        def iter_batches(self, row_groups, **options):
            begun.extend(row_groups)
            return self.file.iter_batches(row_groups=row_groups, **options)

    opens = parquet_rows.open_parquet
    monkeypatch.setattr(parquet_rows, "open_parquet", lambda *arguments: Counting(opens(*arguments)))
    for row in epoch_order(opened, 0, 0)[1::stride]:
        assert bytes(opened.read(row)["visible_image"]) == rows[row]["visible_image"]
    assert len(begun) == len(set(begun)) == -(-60 // rows_per_group)


def test_row_groups_that_fit_in_a_window_are_mixed_and_change_their_order(reader):
    order = epoch_order(reader(5), 0, 0)  # 12 groups, about 3 to a window
    first = {row // 5 for row in order[:12].tolist()}
    assert 2 <= len(first) <= 3 and min(first) > 0 and first != {row // 5 for row in order[-12:].tolist()}


def test_one_large_row_group_is_read_from_front_to_back_with_neighbours_mixed(reader):
    order = epoch_order(reader(60), 0, 0)
    windows = reader(60).windows()[0]
    assert len(windows) > 3
    for start, stop, _ in windows:
        window = order[start:stop].tolist()
        assert sorted(window) == list(range(start, stop))
    assert order.tolist() != list(range(60))


def test_parts_of_a_large_row_group_are_never_mixed_with_other_rows():
    class Mixed:  # as `ParquetRows.windows` gives it: ten row groups of 3 rows, between them one in four parts
        limits = ReadLimits()

        def windows(self):
            small = [[(start, start + 3, 10)] for start in range(0, 30, 3)]
            return [*small[:5], [(30 + start, 35 + start, 20) for start in range(0, 20, 5)], *small[5:]]

    for epoch in range(5):
        order = epoch_order(Mixed(), 0, epoch).tolist()
        places = sorted(order.index(row) for row in range(30, 50))
        assert sorted(order) == list(range(50)) and places == list(range(places[0], places[0] + 20))
        for part in range(4):
            start = places[0] + 5 * part
            assert sorted(order[start:start + 5]) == list(range(30 + 5 * part, 35 + 5 * part))
