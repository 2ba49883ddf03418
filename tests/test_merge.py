"""Merging parquet parts: the same rows in small groups, or a sentence on what is wrong and no output."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import merge_parquet
from data.prepare import merging
from utils.errors import InputError, UsageError, run

SCRIPT = Path(__file__).resolve().parent.parent / "data" / "merge_parquet.py"


def table(start, count):
    rows = range(start, start + count)
    return pa.table({
        "index": pa.array(rows, pa.int64()),
        "question": [None if row % 7 == 0 else f"sentence {row}" for row in rows],
        "visible_image": [os.urandom(50 + row % 5) for row in rows]})


@pytest.fixture
def parts(tmp_path):
    tables = [table(0, 37), table(37, 50)]
    for number, part in enumerate(tables, 1):
        pq.write_table(part, tmp_path / f"part{number}.parquet", row_group_size=23)
    return tables


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def merge(tmp_path, *names, out="out.parquet", more=()):
    merge_parquet.main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / out), *more])


def test_rows_keep_their_order_and_values_in_groups_of_16(tmp_path, parts, capsys):
    merge(tmp_path, "part1.parquet", "part2.parquet")
    merged = pq.ParquetFile(tmp_path / "out.parquet")
    assert merged.read().equals(pa.concat_tables(parts))
    groups = [merged.metadata.row_group(i).num_rows for i in range(merged.num_row_groups)]
    assert groups == [16, 16, 16, 16, 16, 7]
    assert "out.parquet: 87 rows from 2 files" in capsys.readouterr().out
    assert files(tmp_path) == ["out.parquet", "part1.parquet", "part2.parquet"]


def test_without_arguments_the_two_training_parts_are_merged(tmp_path, parts, monkeypatch):
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        (tmp_path / f"part{number}.parquet").rename(tmp_path / "data" / f"mm_ris_train_part{number}.parquet")
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "data" / "mm_ris_train.parquet").equals(pa.concat_tables(parts))


def test_without_the_training_parts_the_missing_one_is_named(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "mm_ris_train_part1.parquet" in done.stderr and "Traceback" not in done.stderr


def test_one_part_is_rewritten_in_small_groups(tmp_path, parts):
    merge(tmp_path, "part2.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(parts[1])
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0).num_rows == 16


@pytest.mark.parametrize("index", [None, ["x", "y", "z"]])
def test_what_pandas_wrote_it_can_read_again(tmp_path, index):
    frame = pd.DataFrame({"question": ["a", "b", "c"], "segmentation": [b"x", b"\0", b"z"]}, index=index)
    frame[:2].to_parquet(tmp_path / "0.parquet")
    frame[2:].to_parquet(tmp_path / "1.parquet")
    merge(tmp_path, "0.parquet", "1.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), frame)


def test_columns_in_another_order_are_matched_by_name(tmp_path, parts):
    pq.write_table(parts[1].select(["visible_image", "index", "question"]), tmp_path / "part2.parquet")
    merge(tmp_path, "part1.parquet", "part2.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(pa.concat_tables(parts))


def test_parts_without_rows_add_none(tmp_path, parts):
    pq.write_table(parts[1].slice(0, 0), tmp_path / "part2.parquet")
    merge(tmp_path, "part2.parquet", "part1.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(parts[0])
    merge(tmp_path, "part2.parquet", out="empty.parquet")
    assert pq.read_table(tmp_path / "empty.parquet").equals(parts[1].slice(0, 0))


def test_an_old_output_is_replaced_only_when_asked(tmp_path, parts):
    (tmp_path / "out.parquet").write_bytes(b"old")
    with pytest.raises(UsageError, match="out.parquet is there already; choose another place, or --overwrite"):
        merge(tmp_path, "part1.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    merge(tmp_path, "part1.parquet", more=["--overwrite"])
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 37
    (tmp_path / "out.parquet").unlink()
    (tmp_path / "out.parquet").symlink_to("where nothing is")
    with pytest.raises(UsageError, match="out.parquet is there already"):
        merge(tmp_path, "part1.parquet")


def test_a_download_is_not_replaced_by_the_default_output(tmp_path, parts, monkeypatch):
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        (tmp_path / f"part{number}.parquet").rename(tmp_path / "data" / f"mm_ris_train_part{number}.parquet")
    (tmp_path / "data" / "mm_ris_train.parquet").write_bytes(b"downloaded")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        merge_parquet.main([])
    assert (tmp_path / "data" / "mm_ris_train.parquet").read_bytes() == b"downloaded"


def test_two_runs_into_one_file_leave_it_whole(tmp_path, parts, monkeypatch):
    read_batches, runs = merging.read_batches, []

    def second_run_meanwhile(*arguments):
        for batch in read_batches(*arguments):
            yield batch
            if not runs:
                runs.append("second")
                merge(tmp_path, "part2.parquet", more=["--overwrite"])
                runs.append(pq.read_table(tmp_path / "out.parquet").num_rows)
    monkeypatch.setattr(merging, "read_batches", second_run_meanwhile)
    merge(tmp_path, "part1.parquet", more=["--overwrite"])
    assert runs == ["second", 50] and pq.read_table(tmp_path / "out.parquet").equals(parts[0])
    assert files(tmp_path) == ["out.parquet", "part1.parquet", "part2.parquet"]


def fails(tmp_path, error, *names, out="out.parquet"):
    """Merge in vain; the message. An old output is untouched, and no other file appears."""
    (tmp_path / "out.parquet").write_bytes(b"old")
    before = files(tmp_path)
    with pytest.raises(error) as caught:
        merge(tmp_path, *names, out=out, more=["--overwrite"])
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    assert files(tmp_path) == before
    assert "\n" not in str(caught.value)
    assert caught.type is error
    return str(caught.value)


def test_a_missing_part_leaves_no_output_behind(tmp_path, parts):
    assert "part3.parquet" in fails(tmp_path, UsageError, "part1.parquet", "part3.parquet")


def test_a_part_of_another_kind_leaves_no_output_behind(tmp_path, parts):
    (tmp_path / "part2.parquet").write_bytes(b"<html>")
    assert "part2.parquet" in fails(tmp_path, InputError, "part1.parquet", "part2.parquet")


def test_a_part_damaged_inside_leaves_no_output_behind(tmp_path, parts):
    path = tmp_path / "part2.parquet"
    pq.write_table(parts[1], path, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    content[start:start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    message = fails(tmp_path, InputError, "part1.parquet", "part2.parquet")
    assert "part2.parquet" in message and "damaged" in message


@pytest.mark.parametrize("change, words", [
    (lambda part: part.drop_columns(["question"]), "column question is missing"),
    (lambda part: part.append_column("extra", part["index"]), "column extra is not in"),
    (lambda part: part.set_column(0, "index", part["index"].cast(pa.int32())), "column index holds int32, but int64"),
])
def test_other_columns_in_a_part_leave_no_output_behind(tmp_path, parts, change, words):
    pq.write_table(change(parts[1]), tmp_path / "part2.parquet")
    message = fails(tmp_path, InputError, "part1.parquet", "part2.parquet")
    assert "part2.parquet" in message and words in message


def test_a_part_cannot_be_the_output(tmp_path, parts):
    (tmp_path / "link.parquet").symlink_to(tmp_path / "part1.parquet")
    for out in ("part1.parquet", "../" + tmp_path.name + "/part1.parquet", "link.parquet"):
        assert "is also read, as" in fails(tmp_path, UsageError, "part1.parquet", "part2.parquet", out=out)
    assert pq.read_table(tmp_path / "part1.parquet").equals(parts[0])


@pytest.mark.parametrize("out", ["nowhere/out.parquet", "."])
def test_an_output_outside_any_folder_is_refused(tmp_path, parts, out):
    assert fails(tmp_path, UsageError, "part1.parquet", out=out).startswith("out: ")


@pytest.mark.parametrize("arguments", [["a.parquet"], ["--out", "b.parquet"], ["a.parquet", "--out"], ["--fast"]])
def test_a_wrong_command_line_is_a_sentence_and_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        merge_parquet.main(arguments)
    assert stopped.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ") and sentence.endswith("; see --help\n") and sentence.count("\n") == 1


@pytest.mark.parametrize("error, code", [("missing", 2), ("damaged", 1)])
def test_the_exit_code_tells_a_wrong_name_from_bad_data(tmp_path, parts, error, code, capsys):
    if error == "damaged":
        (tmp_path / "part3.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit) as stopped:
        run(lambda: merge(tmp_path, "part1.parquet", "part3.parquet"))
    assert stopped.value.code == code
    assert capsys.readouterr().err.startswith("error: ")


def image_set(path, images, start=0, **changes):
    """Three rows of each image, `name: (visible, infrared)`, not next to each other."""
    names = [name for _ in range(3) for name in images]
    pq.write_table(pa.table({
        "index": range(start, start + len(names)), "image_name": names, "question": [f"it {name}" for name in names],
        "visible_image": [images[name][0] for name in names], "infrared_image": [images[name][1] for name in names],
        "segmentation": [os.urandom(9) for _ in names]} | changes), path, row_group_size=5)


@pytest.fixture
def images(tmp_path):
    """20 images in two parts; in the second, eight more names, of which each has one of the first eight's pictures."""
    content = {f"{i}.jpg": (os.urandom(40), os.urandom(40)) for i in range(20)}
    first, second = dict(list(content.items())[:9]), dict(list(content.items())[9:])
    image_set(tmp_path / "part1.parquet", first)
    copies = {f"copy{i}": (content[f"{i}.jpg"][0], b"alone") if i == 0 else (os.urandom(40), content[f"{i}.jpg"][1])
              for i in range(8)}
    image_set(tmp_path / "part2.parquet", second | copies, start=27)
    return pa.concat_tables([pq.read_table(tmp_path / f"part{number}.parquet") for number in (1, 2)]).to_pylist()


def split(tmp_path, *more, out="sets", shares="0.8,0.2"):
    merge(tmp_path, "part1.parquet", "part2.parquet", out=out, more=("--split", shares, *more))
    return {path.stem.removeprefix("mm_ris_"): pq.read_table(path).to_pylist() for path in (tmp_path / out).iterdir()}


def test_images_are_held_out_for_validation_with_all_their_rows(tmp_path, images, capsys):
    sets = split(tmp_path)
    assert sets.keys() == {"train", "val"}
    assert sorted((row for rows in sets.values() for row in rows), key=lambda row: row["index"]) == images
    for rows in sets.values():
        assert [row["index"] for row in rows] == sorted(row["index"] for row in rows), "the order stays"
    for column in ("image_name", "visible_image", "infrared_image"):
        assert not {row[column] for row in sets["train"]} & {row[column] for row in sets["val"]}
    names = [{row["image_name"] for row in rows if "copy" not in row["image_name"]} for rows in sets.values()]
    assert sorted(map(len, names)) == [4, 16]
    assert pq.ParquetFile(tmp_path / "sets" / "mm_ris_train.parquet").metadata.row_group(0).num_rows == 16
    said = capsys.readouterr().out
    assert f"mm_ris_val.parquet: {len(sets['val'])} rows, " in said and " images\n" in said


def test_the_seed_decides_what_is_held_out_and_not_the_order_of_the_parts(tmp_path, images):
    def held_out(*arguments, **options):
        return {row["image_name"] for row in split(tmp_path, *arguments, **options)["val"]}

    first = held_out()
    assert first == held_out(out="again") != held_out("--seed", "1", out="other")
    (tmp_path / "part1.parquet").rename(tmp_path / "part0.parquet")
    (tmp_path / "part2.parquet").rename(tmp_path / "part1.parquet")
    (tmp_path / "part0.parquet").rename(tmp_path / "part2.parquet")
    assert first == held_out(out="swapped")
    assert split(tmp_path, out="three", shares="8,1,1").keys() == {"train", "val", "test"}


def test_holding_out_replaces_files_only_when_asked_and_never_its_input(tmp_path, images):
    split(tmp_path)
    with pytest.raises(UsageError, match="mm_ris_train.parquet is there already; choose another place"):
        split(tmp_path)
    test = tmp_path / "sets" / "mm_ris_test.parquet"
    test.write_bytes(b"of another set")
    merge(tmp_path, "part1.parquet", "part2.parquet", out="sets", more=("--split", "0.8,0.2", "--overwrite"))
    before = (tmp_path / "sets" / "mm_ris_train.parquet").read_bytes()
    with pytest.raises(UsageError, match="mm_ris_train.parquet is also read, as"):
        merge(tmp_path, "sets/mm_ris_train.parquet", out="sets", more=("--split", "0.5,0.5", "--overwrite"))
    assert (tmp_path / "sets" / "mm_ris_train.parquet").read_bytes() == before
    assert test.read_bytes() == b"of another set", "it has no share"


def test_without_arguments_the_training_parts_become_the_sets_that_training_reads(tmp_path, images, monkeypatch):
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        (tmp_path / f"part{number}.parquet").rename(tmp_path / "data" / f"mm_ris_train_part{number}.parquet")
    (tmp_path / "data" / "mm_ris_test.parquet").write_bytes(b"as it was fetched")  # it gets no share
    monkeypatch.chdir(tmp_path)
    merge_parquet.main(["--split", "0.95,0.05"])
    assert files(tmp_path / "data") == ["mm_ris_test.parquet", "mm_ris_train.parquet", "mm_ris_train_part1.parquet",
                                        "mm_ris_train_part2.parquet", "mm_ris_val.parquet"]


@pytest.mark.parametrize("column, values, words", [
    ("image_name", None, "column image_name is missing; there are"),
    ("visible_image", ["text"] * 6, "column visible_image must hold bytes, not string"),
    ("image_name", ["the same"] * 6, "1 different image cannot make up 2 parts")])
def test_what_cannot_be_held_out_leaves_no_file(tmp_path, column, values, words):
    image_set(tmp_path / "part1.parquet", {"a": (b"1", b"2"), "b": (b"3", b"4")}, **{column: values or [0] * 6})
    if values is None:
        table = pq.read_table(tmp_path / "part1.parquet").drop_columns([column])
        pq.write_table(table, tmp_path / "part1.parquet")
    with pytest.raises(InputError, match=words):
        merge(tmp_path, "part1.parquet", out="sets", more=("--split", "1,1"))
    assert files(tmp_path / "sets") == []


def test_interrupting_leaves_no_output_behind(tmp_path, parts, monkeypatch, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupted(*arguments):
        yield table(0, 20)
        assert len(files(tmp_path)) == 3  # the temporary file lies in the output's folder
        os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(merging, "read_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path, "part1.parquet", "part2.parquet")
    assert files(tmp_path) == ["part1.parquet", "part2.parquet"]
