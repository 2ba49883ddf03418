"""compare.py: is one evaluation better than another?"""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import script

from evaluation.comparison import check_same, read_run
from utils.errors import InputError
from utils.spreadsheet import as_cell


def write_run(folder, iou, **changes):
    """What test.py leaves of samples of 1000 px with these IoUs, two to an image."""
    folder.mkdir()
    table = pd.DataFrame({
        "index": range(len(iou)), "image_name": [f"{row // 2}.jpg" for row in range(len(iou))], "question": "NA",
        "iou": iou, "intersection": [round(1000 * value) for value in iou], "union": 1000,
        "EN": [6 + value for value in iou]} | changes)
    table.to_csv(folder / "per_sample.csv", index=False)
    metrics = {"mIoU": 100 * float(np.mean(iou)), "oIoU": 100 * float(np.mean(iou)), "F1": 50.0,
               "precision@0.5": 100 * float(np.mean(np.array(iou) >= 0.5)), "num_samples": len(iou),
               "fusion_metrics": {"fused": {"EN": float(6 + np.mean(iou))}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder / "metrics.json"


HEADER = "index,image_name,question,iou,intersection,union\n"
IOU = np.random.default_rng(0).integers(100, 800, 60) / 1000


@pytest.fixture
def worse(tmp_path):
    return write_run(tmp_path / "worse", IOU)


def test_two_runs_stand_side_by_side_with_p_values(worse, tmp_path):
    better = write_run(tmp_path / "better", IOU + 0.1)
    lines = script("compare.py", worse, better).stdout.splitlines()
    assert "60 samples of 30 images" in lines
    cells = {line.split()[0]: line.split() for line in lines if line}
    mean = 100 * IOU.mean()
    assert cells["mIoU"][1:4] == [f"{mean:.3f}", f"{mean + 10:.3f}", "10.000"]
    assert cells["mIoU"][4:] == ["[10.000,", "10.000]", "<0.001"]
    assert cells["EN"][3:] == ["0.100", "[0.100,", "0.100]", "<0.001"]
    assert float(cells["precision@0.5"][3]) > 0
    assert len(cells["F1"]) == 4  # per_sample.csv does not say it


def test_a_folder_does_for_the_file_in_it_and_the_order_of_rows_does_not_matter(worse, tmp_path):
    other = write_run(tmp_path / "other", IOU)
    table = pd.read_csv(other.parent / "per_sample.csv", keep_default_na=False)
    table[::-1].to_csv(other.parent / "per_sample.csv", index=False)
    (_, a), (_, b) = read_run(str(worse.parent)), read_run(str(other))
    assert a.equals(b)
    check_same(a, b, ("A", "B"))


def test_other_sentences_on_the_same_samples_are_compared_and_said_so(worse, tmp_path):
    other = write_run(tmp_path / "other", IOU, question=["the car"] * 50 + ["NA"] * 10)
    assert "note: 50 of them have another sentence in B than in A" in script("compare.py", worse, other).stdout


def test_settings_that_differ_are_named(worse, tmp_path):
    other = write_run(tmp_path / "other", IOU)
    for path, settings in ((worse, {"img_size": 480, "tta": "none", "amp": False, "seed": 0}),
                           (other, {"img_size": 96, "tta": "flip", "amp": False, "shuffle_text": True})):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))
    lines = script("compare.py", worse, other).stdout.splitlines()
    assert "note: other settings in B than in A: img_size 480 → 96, tta none → flip" in lines
    assert "other settings" not in script("compare.py", worse, worse).stdout


def test_runs_over_other_samples_are_refused(worse, tmp_path):
    few = write_run(tmp_path / "few", IOU[:50])
    process = script("compare.py", worse, few, ok=False)
    assert process.returncode == 1
    assert "not of the same samples" in process.stderr
    assert "10 of 60 are only in the first, 0 of 50 only in the second, such as index 50 of image '25.jpg'" \
        in process.stderr


def test_files_of_two_runs_in_one_folder_are_noticed(worse, tmp_path):
    other = write_run(tmp_path / "other", IOU + 0.01)
    other.write_text(worse.read_text())
    with pytest.raises(InputError, match="not of the same run"):
        read_run(str(other))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("metrics.json", "{", "is not what test.py writes"),
    ("metrics.json", "[]", "is not what test.py writes"),
    ("metrics.json", None, "there is no"),
    ("metrics.json", "[" * 100_000, "is not what test.py writes"),
    ("metrics.json", "7", "it holds no table of metrics"),
    ("metrics.json", '{"num_samples": 60}', "mIoU is absent"),
    ("metrics.json", '{"mIoU": NaN, "num_samples": 60}', "it holds NaN, which is no number"),
    ("metrics.json", '{"mIoU": [45.0], "num_samples": 60}', "mIoU is \\[45.0\\], not a number"),
    ("metrics.json", '{"mIoU": null, "num_samples": 60}', "mIoU is None, not a number"),
    ("metrics.json", '{"mIoU": 1' + "0" * 400 + ', "num_samples": 60}', "not a number"),
    ("metrics.json", '{"mIoU": 45.0, "num_samples": 60.5}', "num_samples is 60.5, not a number"),
    ("metrics.json", '{"mIoU": 45.0, "num_samples": 60, "precision@half": 1.0}', "no threshold between 0 and 1"),
    ("metrics.json", '{"mIoU": 45.0, "num_samples": 60, "settings": []}', "settings is no table"),
    ("metrics.json", '{"mIoU": 45.0, "num_samples": 60, "fusion_metrics": {"fused": 1}}', "fused is no table"),
    ("metrics.json", '{"mIoU": 45.0, "num_samples": 60, "fusion_metrics": {"fused": {"EN": "a"}}}', "EN is 'a'"),
    ("per_sample.csv", HEADER, "it has no rows"),
    ("per_sample.csv", HEADER + "0,a,the car,nan,1,2\n", "is not what test.py writes"),
    ("per_sample.csv", HEADER + "0,a,the car,,1,2\n", "out of range"),
    ("per_sample.csv", HEADER + "0,a,the car,inf,1,2\n", "out of range"),
    ("per_sample.csv", HEADER + "0,a,the car,0.5,3,2\n", "out of range"),
    ("per_sample.csv", HEADER + "0,a,the car,0.5,[1],2\n", "is not what test.py writes"),
    ("per_sample.csv", HEADER + "0,a,the car,0.5,1,2\n0,a,the car,0.5,1,2\n", "a sample is in it twice"),
    ("per_sample.csv", "\0" * 99, "is not what test.py writes"),
    ("per_sample.csv", "a,b\n1,2\n", "is not what test.py writes"),
    ("per_sample.csv", "", "is not what test.py writes"),
    ("per_sample.csv", None, "there is no")])
def test_anything_else_is_named(name, content, message, worse):
    path = worse.parent / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_run(str(worse))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_names_that_were_marked_for_a_spreadsheet_are_those_of_an_older_file(worse, tmp_path):
    names = ["=a.jpg"] * 30 + ["-b.jpg"] * 30
    old = write_run(tmp_path / "old", IOU, image_name=names)
    new = write_run(tmp_path / "new", IOU, image_name=[as_cell(name) for name in names])
    (_, a), (_, b) = read_run(str(old)), read_run(str(new))
    check_same(a, b, ("A", "B"))
    assert set(b.index.get_level_values("image_name")) == {"=a.jpg", "-b.jpg"}


def test_images_are_those_that_the_evaluation_told_apart(worse, tmp_path):
    by_content = write_run(tmp_path / "content", IOU + 0.1, picture=[f"{row // 3:x}" for row in range(60)])
    assert "60 samples of 20 images" in script("compare.py", worse, by_content).stdout
    assert "60 samples of 20 images" in script("compare.py", by_content, worse).stdout


def test_a_name_in_a_message_stands_on_one_line_and_is_cut(worse, tmp_path):
    """The message is one sentence wherever it is shown."""
    name = "\x1b[31mred\n" + "x" * 1000
    other = write_run(tmp_path / "other", IOU, image_name=[name] * len(IOU))
    (_, a), (_, b) = read_run(str(other)), read_run(str(worse))
    with pytest.raises(InputError, match=r"of image '\\x1b\[31mred\\nx+…'") as caught:
        check_same(a, b, ("A", "B"))
    assert len(str(caught.value)) < 500


def test_text_from_the_files_is_printed_without_escape_sequences(worse, tmp_path):
    other = write_run(tmp_path / "other", IOU[:59])
    table = pd.read_csv(worse.parent / "per_sample.csv", keep_default_na=False)
    table.loc[59, "image_name"] = "\x1b[31mred.jpg"
    table.to_csv(worse.parent / "per_sample.csv", index=False)
    odd = {"\x1b[2J": 1.0, "F\n1": 1.0, "settings": {"\x1b": "\x1b"}}
    worse.write_text(json.dumps(json.loads(worse.read_text()) | odd))
    said = script("compare.py", worse, other, ok=False).stderr
    assert "\\x1b[31mred.jpg" in said and "\x1b" not in said
    changed = write_run(tmp_path / "changed", IOU)
    changed.write_text(json.dumps(json.loads(worse.read_text()) | {"settings": {"\x1b": "a\x07"}}))
    (worse.parent / "per_sample.csv").write_text((changed.parent / "per_sample.csv").read_text())
    said = script("compare.py", worse, changed).stdout
    assert "\\x1b[2J" in said and "F\\n1 " in said and "\\x1b \\x1b → a\\x07" in said and "\x1b" not in said
