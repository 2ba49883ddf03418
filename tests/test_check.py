"""Checking parquet files: every unusable row and every oddity is named, counted and shown."""
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bert.tiny import write_tiny_bert
from data import check_parquet
from data.columns import SCHEMA
from data.object_sizes import small_objects
from data.prepare.checking import Checker
from utils.errors import InputError, UsageError

SCRIPT = Path(__file__).resolve().parent.parent / "data" / "check_parquet.py"


def picture(number, size=(32, 24), kind="PNG", grey=False, **options):
    """The bytes of an image unlike that of any other number."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def mask(pixels=48, size=(32, 24)):
    array = np.zeros(size[::-1], np.uint8)
    array.ravel()[:pixels] = 1
    return npy(array)


def rows(count, first=0):
    return [{"index": number, "image_name": f"{number}.png", "visible_image": picture(2 * number),
             "infrared_image": picture(2 * number + 1, grey=True), "question": f"object number {number}",
             "segmentation": mask()}
            for number in range(first, first + count)]


def write(path, content, group=16):
    pq.write_table(pa.Table.from_pylist(content, SCHEMA), path, row_group_size=group)
    return path


def check(*paths, out, flags=("-j", "0", "--samples", "3")):
    """Run the script; the report, and the sentence it stopped with."""
    sentence = None
    try:
        check_parquet.main([*map(str, paths), "--out_dir", str(out), *flags])
    except InputError as error:
        sentence = str(error)
    return json.loads((out / "report.json").read_text()), sentence


def test_a_sound_file_is_counted_and_shown(tmp_path, capsys):
    content = rows(6)
    content[1] |= {name: content[0][name] for name in ("image_name", "visible_image", "infrared_image")}
    content[5]["segmentation"] = mask(32 * 24 - 1)
    report, sentence = check(write(tmp_path / "a.parquet", content), out=tmp_path)
    assert sentence is None and report["usable"] and report["problems"] == []
    facts = report["sets"][0]
    assert (facts["rows"], facts["unusable_rows"], facts["rows_with_warnings"], facts["images"]) == (6, 0, 0, 5)
    assert facts["expressions_per_image"] == {"1": 4, "2": 1} and facts["words_per_expression"] == {"3": 6}
    assert facts["visible_sizes"] == {"32x24": 5}
    bins = dict(zip(facts["mask_area"]["upper_edges"], facts["mask_area"]["rows"], strict=True))
    assert bins[0.1] == 5 and bins[1.0] == 1 and sum(bins.values()) == 6, "48 of 768 pixels are 6.25 %"
    said = capsys.readouterr().out
    assert "32 x 24" in said and "1, 1.2, 2" in said and "5 to 10 %" in said and "word pieces" not in said
    assert facts["mask_area"]["median"] == 0.0625 and facts["cut_sentences"] is None and "seg_loss" not in said
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 200 and sheet.height > 3 * 150


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(0, exif=exif)


BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\0\0\0\0"


@pytest.mark.parametrize("column, value, severity, kind, reason", [
    ("visible_image", None, "error", "null", "is empty (null)"),
    ("image_name", None, "error", "null", "is empty (null)"),
    ("question", None, "error", "null", "is empty (null)"),
    ("question", " \n", "error", "expression", "is empty (no words)"),
    ("visible_image", b"", "error", "damaged", "0 bytes"),
    ("infrared_image", b"a text", "error", "damaged", "cannot be decoded as an image"),
    ("visible_image", picture(0, kind="JPEG")[:-200], "error", "damaged", "truncated"),
    ("visible_image", BOMB + (0x8ddb8d4c).to_bytes(4, "big"), "error", "damaged", "cannot be decoded"),
    ("segmentation", b"a text", "error", "damaged", "is not a .npy"),
    ("segmentation", npy(np.zeros((2, 3, 4))), "error", "damaged", "must be a (height, width) array"),
    ("segmentation", npy(np.array([[print]])), "error", "damaged", "holds a pickle"),
    ("segmentation", mask(0), "warning", "empty_mask", "no pixel is marked"),
    ("segmentation", mask(32 * 24), "warning", "full_mask", "covers the whole image"),
    ("segmentation", npy(np.array([[0, 1, 255]] * 24).repeat([10, 12, 10], 1)), "warning", "mask", "a border"),
    ("infrared_image", picture(4), "warning", "pair", "the same picture"),
    ("infrared_image", picture(9), "warning", "pair", "in false colours"),
    ("segmentation", mask(size=(24, 32)), "warning", "size", "has 24 x 32 pixels, visible_image has 32 x 24"),
    ("infrared_image", picture(7, (16, 12), grey=True), "warning", "size", "has 16 x 12 pixels"),
    ("visible_image", turned(), "warning", "turned", "EXIF"),
    ("index", None, "warning", "index", "is not a whole number"),
    ("index", 0, "warning", "index", "0 was there before"),
])
def test_a_row_that_is_wrong_or_odd_is_named_with_column_and_reason(tmp_path, capsys, column, value, severity, kind,
                                                                    reason):
    content = rows(3)
    content[2][column] = value
    file = write(tmp_path / "a.parquet", content)
    report, sentence = check(file, out=tmp_path)
    assert [(found["row"], found["column"], found["severity"], found["kind"]) for found in report["problems"]] == [
        (2, column, severity, kind)]
    assert reason in report["problems"][0]["reason"]
    assert f"{severity}: {file}: row 2: {column} " in capsys.readouterr().out
    assert report["usable"] == (severity == "warning") == (sentence is None)
    facts = report["sets"][0]
    assert (facts["rows"], facts["unusable_rows"], facts["rows_with_warnings"]) == (
        3, severity == "error", severity == "warning")


def test_images_that_two_files_share_are_found_in_another_format_too(tmp_path):
    first, second = rows(3), rows(3, first=10)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(first[1]["visible_image"])).save(buffer, "TIFF")
    second[2] |= {"visible_image": buffer.getvalue(), "infrared_image": first[1]["infrared_image"]}
    train, test = write(tmp_path / "train.parquet", first), write(tmp_path / "test.parquet", second)
    report, sentence = check(train, test, out=tmp_path)
    assert sentence is None and [(found["file"], found["row"], found["kind"], found["reason"])
                                 for found in report["problems"]] == [
        (str(test), 2, "leak", f"is also in {train}: row 1")]
    assert "1 warning;" in check(train, test, out=tmp_path, flags=("-j", "0", "--strict"))[1]
    (tmp_path / "set").mkdir()
    for file in (train, test):
        file.rename(tmp_path / "set" / file.name)
    assert check(tmp_path / "set", out=tmp_path)[0]["problems"] == [], "files of one folder are one data set"


def test_repeated_rows_and_contradictions_are_found(tmp_path):
    content = rows(4)
    content[2] = content[0] | {"index": 2}
    content[3] = content[1] | {"index": 3, "segmentation": mask(50)}
    report, _ = check(write(tmp_path / "a.parquet", content), out=tmp_path)
    assert [(found["row"], found["kind"]) for found in report["problems"]] == [(2, "duplicate"), (3, "ambiguous")]
    assert "row 0, the same mask" in report["problems"][0]["reason"]
    assert "row 1, but another mask" in report["problems"][1]["reason"]


def test_small_objects_lead_to_advice_on_loss_and_size(tmp_path, capsys):
    content = rows(4)
    for row, pixels in zip(content, (1, 2, 2, 200), strict=True):
        row["segmentation"] = mask(pixels, size=(64, 48))
        row["visible_image"] = picture(2 * row["index"], (64, 48))
        row["infrared_image"] = picture(2 * row["index"] + 1, (64, 48), grey=True)
    file = write(tmp_path / "a.parquet", content)
    check(file, out=tmp_path)
    said = capsys.readouterr().out
    assert f"{file}: 75 % of the objects cover less than 1 % of their image; the median one has 150 pixels" in said
    assert "480 x 480" in said and "bce_area or dice" in said and "larger img_size (1280 gives" in said
    check(file, out=tmp_path, flags=("-j", "0", "--img_size", "1280"))
    said = capsys.readouterr().out
    assert "1067 pixels of the networks' 1280 x 1280" in said and "larger img_size" not in said


@pytest.mark.parametrize("areas, small", [
    ([0.009, 0.009, 0.02], True), ([0.009, 0.02, 0.02], False), ([0, 0, 0.02], False), ([0, 0, 0.001], True),
    ([], False)])
def test_objects_are_small_if_most_are_and_empty_masks_do_not_count(areas, small):
    assert bool(small_objects(areas, 480)) == small


def test_sentences_that_bert_does_not_read_whole_are_counted(tmp_path, capsys):
    content = rows(3)
    content[1]["question"] = "word " * 18  # with [CLS] and [SEP] 20 word pieces
    content[2]["question"] = "word " * 19
    write_tiny_bert(str(tmp_path / "bert"), ["object number word"], hidden=16, layers=1, heads=1)
    report, _ = check(write(tmp_path / "a.parquet", content), out=tmp_path,
                      flags=("-j", "0", "--samples", "0", "--bert_tokenizer", str(tmp_path / "bert")))
    assert report["sets"][0]["cut_sentences"] == 1
    assert re.search(r"expressions cut at 20 word pieces +1\n", capsys.readouterr().out)
    with pytest.raises(UsageError, match="bert_tokenizer: there is no folder"):
        check_parquet.main([str(tmp_path / "a.parquet"), "--out_dir", str(tmp_path), "--bert_tokenizer", "nowhere"])


def test_an_input_is_not_replaced_by_the_report(tmp_path):
    (tmp_path / "report.json").write_bytes(write(tmp_path / "a.parquet", rows(1)).read_bytes())
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(UsageError, match="out_dir: .*report.json is also read, as"):
        check_parquet.main([str(tmp_path / "report.json"), "--out_dir", str(tmp_path), "-j", "0"])
    assert (tmp_path / "report.json").read_bytes() == before


@pytest.mark.parametrize("reader, code", [("closed pipe", 0), ("/dev/full", 1)])
def test_the_report_is_written_even_if_nobody_reads_the_output(tmp_path, reader, code):
    file = write(tmp_path / "a.parquet", rows(2))
    command = [sys.executable, str(SCRIPT), str(file), "-j", "0", "--out_dir", str(tmp_path / "out")]
    if reader == "/dev/full":
        with open(reader, "w") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    else:
        ends = os.pipe()
        os.close(ends[0])
        done = subprocess.run(command, stdout=ends[1], stderr=subprocess.PIPE, text=True, check=False)
        os.close(ends[1])
    assert done.returncode == code and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["usable"]
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_escape_sequences_in_data_are_not_printed(tmp_path, capsys):
    content = rows(2)
    content[1] |= {"infrared_image": content[1]["visible_image"], "question": "a \x1b[31m b"}
    check(write(tmp_path / "a\x1b[2J.parquet", content), out=tmp_path)
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"a\x1b[2J.parquet: row 1" in said


@pytest.mark.parametrize("flag", ["--samples", "-j"])
def test_numbers_that_cannot_be_held_are_refused(tmp_path, flag, capsys):
    with pytest.raises(SystemExit):
        check_parquet.main([str(write(tmp_path / "a.parquet", rows(1))), flag, "1" + "0" * 12])
    assert "at most" in capsys.readouterr().err


@pytest.mark.parametrize("spoil, kind, column, reason", [
    (lambda table: table.drop_columns("question"), "column", "question", "is missing; there are index, image_name"),
    (lambda table: table.set_column(4, "question", pa.array([1, 2])), "column", "question", "must hold text, not"),
    (lambda table: table.append_column("question", table["question"]), "column", "question", "is there twice"),
    (lambda table: table[:0], "empty", "", "there are no rows"),
])
def test_a_file_of_another_schema_does_not_keep_the_others_from_being_checked(tmp_path, spoil, kind, column, reason):
    pq.write_table(spoil(pa.Table.from_pylist(rows(2), SCHEMA)), tmp_path / "a.parquet")
    good = write(tmp_path / "b.parquet", rows(2, first=5))
    report, sentence = check(tmp_path / "a.parquet", good, out=tmp_path)
    assert [(found["row"], found["kind"], found["column"]) for found in report["problems"]] == [(None, kind, column)]
    assert reason in report["problems"][0]["reason"] and sentence
    assert [facts["rows"] for facts in report["sets"]] == [0, 2]


def test_damage_in_the_middle_of_a_file_is_reported_and_the_rows_before_are_checked(tmp_path):
    file = write(tmp_path / "a.parquet", rows(12), group=4)
    content = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(1).column(2).data_page_offset
    content[place:place + 40] = b"\xff" * 40
    file.write_bytes(content)
    report, sentence = check(file, out=tmp_path)
    assert report["problems"][0]["reason"].startswith("from row 4 on, it cannot be read") and sentence
    assert report["sets"][0]["rows"] == 4
    file.write_bytes(content[: len(content) // 2])
    assert "not a parquet file, or it is incomplete" in check(file, out=tmp_path)[0]["problems"][0]["reason"]


def test_without_an_index_column_nothing_is_wrong(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows(2), SCHEMA).drop_columns("index"), tmp_path / "a.parquet")
    report, sentence = check(tmp_path / "a.parquet", out=tmp_path)
    assert sentence is None and not report["problems"] and report["sets"][0]["has_index"] is False


def test_several_processes_find_the_same_in_the_same_order(tmp_path):
    content = rows(30)
    for row in (3, 17, 29):
        content[row]["visible_image"] = b"text"
    content[20] = content[1] | {"index": 20}
    file = write(tmp_path / "a.parquet", content, group=30)
    alone = check(file, out=tmp_path)
    assert [found["row"] for found in alone[0]["problems"]] == [3, 17, 20, 29]
    assert check(file, out=tmp_path, flags=("-j", "2", "--samples", "3")) == alone


def test_the_sheet_shows_rows_from_all_over_the_files(tmp_path):
    files = [write(tmp_path / "a.parquet", rows(10)), write(tmp_path / "b.parquet", rows(10, first=10))]
    checker = Checker([str(file) for file in files], workers=0, samples=3, thumbnail=40)
    checker.run()
    assert [(Path(file).name, row, sentence) for file, row, sentence, _ in checker.samples] == [
        ("a.parquet", 0, "object number 0"), ("a.parquet", 9, "object number 9"), ("b.parquet", 9, "object number 19")]
    visible, infrared, object_mask = checker.samples[0][3]
    assert visible.shape == infrared.shape == (30, 40, 3) and object_mask.shape == (30, 40)
    assert object_mask[:1].all() and not object_mask[4:].any()


def test_as_a_script_an_unusable_row_ends_in_exit_code_1(tmp_path):
    content = rows(2)
    content[1]["question"] = ""
    file = write(tmp_path / "a.parquet", content)
    done = subprocess.run([sys.executable, str(SCRIPT), str(file), "-j", "0", "--out_dir", str(tmp_path / "out")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "row 1: question is empty (no words)" in done.stdout
    with pytest.raises(UsageError, match="no such file"):
        check_parquet.main([str(tmp_path / "lost.parquet")])
