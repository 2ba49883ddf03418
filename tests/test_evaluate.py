"""test.py, run as someone runs it who wants the numbers of a table."""
import argparse
import errno
import io
import os
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import script
from evaluations import arguments, evaluate, fused_stem, read_metrics, read_samples, write_wide_scenes
from PIL import Image

from evaluation.comparison import read_run
from utils import checkpoint
from utils.files import file_stem, unique_names
from utils.spreadsheet import as_cell, from_cell


@pytest.fixture(scope="module")
def wide_scenes(scenes, tmp_path_factory):
    return write_wide_scenes(scenes, tmp_path_factory.mktemp("wide") / "test.parquet")


@pytest.fixture(scope="module")
def result(trained, wide_scenes, tmp_path_factory):
    """An evaluation that is told nothing but checkpoint, data and output folder."""
    out_dir = tmp_path_factory.mktemp("holder") / "out"
    process = script("test.py", *arguments(trained, wide_scenes, out_dir))
    return argparse.Namespace(out_dir=out_dir, stdout=process.stdout, parquet=wide_scenes,
                              metrics=read_metrics(out_dir), samples=read_samples(out_dir))


def test_the_metrics_are_printed_and_written(result):
    numbers = {name: value for name, value in result.metrics.items() if not isinstance(value, dict)}
    assert list(numbers) == ["mIoU", "oIoU", "cIoU", "Precision", "Recall", "F1", "precision@0.5", "precision@0.6",
                             "precision@0.7", "precision@0.8", "precision@0.9", "num_samples"]
    assert result.metrics["num_samples"] == 7
    for name, value in numbers.items():
        assert any(line.split()[:2] == [name, f"{value:.2f}" if name != "num_samples" else "7"]
                   for line in result.stdout.splitlines())


def test_the_samples_add_up_to_the_metrics(result):
    source = pq.read_table(result.parquet).to_pylist()
    assert list(result.samples[0]) == ["index", "image_name", "question", "iou", "intersection", "union"]
    assert [int(sample["index"]) for sample in result.samples] == list(range(7))  # row numbers, without the column
    assert [sample["question"] for sample in result.samples] == [row["question"] for row in source]
    iou = [float(sample["iou"]) for sample in result.samples]
    parts = [(int(sample["intersection"]), int(sample["union"])) for sample in result.samples]
    assert iou == pytest.approx([i / u if u else 0 for i, u in parts], abs=1e-6)
    assert result.metrics["mIoU"] == pytest.approx(100 * sum(iou) / 7, abs=1e-3)
    assert result.metrics["oIoU"] == pytest.approx(100 * sum(i for i, _ in parts) / sum(u for _, u in parts))


def test_every_picture_has_its_original_size(result):
    for folder, suffix in (("Binary", "png"), ("Overlay", "jpg"), ("GT", "jpg")):
        assert {path.name for path in (result.out_dir / folder).iterdir()} == {f"{i}.{suffix}" for i in range(7)}
    pictures = [path for path in result.out_dir.rglob("*/*") if path.is_file()]
    assert len(pictures) == 4 * 7
    assert all(Image.open(path).size == (100, 70) for path in pictures)
    assert min(Image.open(result.out_dir / "contact_sheet.png").size) > 300


def test_masks_are_black_and_white_and_overlays_red(result):
    source = pq.read_table(result.parquet).to_pylist()
    for index in range(7):
        assert set(np.unique(np.asarray(Image.open(result.out_dir / "Binary" / f"{index}.png")))) <= {0, 255}
        truth = np.load(io.BytesIO(source[index]["segmentation"])) > 0
        fused, marked = (np.asarray(Image.open(result.out_dir / path).convert("RGB")).astype(int) for path in (
            f"fusion/{'_.._outside' if index == 0 else fused_stem(source, index)}.jpg", f"GT/{index}.jpg"))
        change = marked - fused
        assert change[truth][:, 0].mean() > change[truth][:, 1:].mean() + 30
        assert np.abs(change[~truth]).mean() < 3


def test_names_from_the_data_stay_in_the_output_folder(result):
    names = {path.name for path in (result.out_dir / "fusion").iterdir()}
    assert len(names) == 7
    assert "_.._outside.jpg" in names
    assert {path.name for path in result.out_dir.parent.iterdir()} == {"out"}


def test_a_name_that_several_rows_share_gets_the_index(result):
    source = pq.read_table(result.parquet).to_pylist()
    names = {path.name for path in (result.out_dir / "fusion").iterdir()}
    assert names == {"_.._outside.jpg"} | {f"{fused_stem(source, row)}.jpg" for row in range(1, 7)}
    assert len({row["image_name"] for row in source}) < 7


@pytest.mark.parametrize(("names", "expected"), [
    (["a", "b"], ["a", "b"]),
    (["a", "a"], ["a_10", "a_11"]),
    (["A", "a"], ["A_10", "a_11"]),
    (["a", "a", "a_10"], ["a_10_10", "a_11", "a_10"])])
def test_no_two_fused_images_share_a_file(names, expected):
    assert unique_names(names, range(10, 10 + len(names))) == expected


@pytest.mark.parametrize(("name", "stem"), [
    ("FLIR_1", "FLIR_1"), ("a/b\\c", "a_b_c"), ("..", "_"), ("", "_"), ("line\nbreak\0", "line_break_"),
    ("图像", "图像")])
def test_any_name_becomes_a_plain_file_name(name, stem):
    assert file_stem(name) == stem


def test_a_very_long_name_is_cut_to_what_file_systems_take():
    assert len(file_stem("图" * 500).encode()) <= 200


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_batch_size_does_not_change_the_result(batch_size, result, trained, tmp_path):
    evaluate(trained, result.parquet, tmp_path, "-b", batch_size, "--save", "masks")
    for sample, other in zip(read_samples(tmp_path), result.samples, strict=True):
        assert sample["index"] == other["index"]
        assert float(sample["iou"]) == pytest.approx(float(other["iou"]), abs=0.002)  # a pixel on the fence
    for path in (tmp_path / "Binary").iterdir():
        masks = [np.asarray(Image.open(folder / "Binary" / path.name)) for folder in (tmp_path, result.out_dir)]
        assert (masks[0] != masks[1]).mean() < 0.001


def test_workers_do_not_change_the_result(result, trained, tmp_path):
    evaluate(trained, result.parquet, tmp_path, "-j", 1, "--save", "none")
    assert read_samples(tmp_path) == result.samples


@pytest.mark.parametrize(("save", "folders"), [("none", set()), ("masks", {"Binary"})])
def test_pictures_are_saved_as_asked_for(save, folders, trained, wide_scenes, tmp_path):
    evaluate(trained, wide_scenes, tmp_path, "--save", save, "--limit", 2)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == folders
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "metrics.json", "per_sample.csv", "report.html", "contact_sheet.png"}


def test_a_limit_takes_the_first_rows(result, trained, tmp_path):
    process = evaluate(trained, result.parquet, tmp_path, "--limit", 3)
    assert read_samples(tmp_path) == result.samples[:3]
    assert read_metrics(tmp_path)["num_samples"] == 3
    assert len(list((tmp_path / "Binary").iterdir())) == 3
    assert "num_samples          3" in process.stdout
    whole = {path.name for path in (result.out_dir / "fusion").iterdir()}
    assert {path.name for path in (tmp_path / "fusion").iterdir()} <= whole


def test_swapped_sentences_are_seeded_and_none_stays(result, trained, tmp_path):
    questions = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        evaluate(trained, result.parquet, tmp_path / name, "--shuffle_text", "--seed", seed)
        questions[name] = [sample["question"] for sample in read_samples(tmp_path / name)]
    original = [sample["question"] for sample in result.samples]
    assert questions["a"] == questions["b"] != questions["c"]
    assert sorted(questions["a"]) == sorted(original)
    assert all(new != old for new, old in zip(questions["a"], original, strict=True))


def test_results_of_an_earlier_run_are_kept_and_not_mixed(trained, scenes, wide_scenes, tmp_path):
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(wide_scenes).slice(0, 2), few)
    evaluate(trained, wide_scenes, tmp_path / "out")
    assert "earlier_run_1" in evaluate(trained, few, tmp_path / "out").stdout
    assert len(list((tmp_path / "out" / "Binary").iterdir())) == 2
    assert len(list((tmp_path / "out" / "earlier_run_1" / "Binary").iterdir())) == 7


def test_the_command_line_beats_the_checkpoint(trained, wide_scenes, tmp_path):
    evaluate(trained, wide_scenes, tmp_path, "--img_size", 96, "--iou_thresholds", "0.25,0.5")
    metrics = read_metrics(tmp_path)
    assert "precision@0.25" in metrics and "precision@0.9" not in metrics
    assert max(int(sample["union"]) for sample in read_samples(tmp_path)) > 0
    process = evaluate(trained, wide_scenes, tmp_path, "--mha", "1-2-4-3", ok=False)
    assert process.returncode == 2
    assert "--mha: " in process.stderr


def test_paths_stored_in_a_checkpoint_are_used_only_if_they_exist_here(trained, scenes, wide_scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    content["args"] = argparse.Namespace(**content["args"] | {"ck_bert": "/elsewhere", "bert_tokenizer": "/elsewhere",
                                                              "device": torch.device("cuda", 3)})
    del content["bert"]  # as in the released checkpoint
    torch.save(content, tmp_path / "last.pth")
    process = evaluate(tmp_path, wide_scenes, tmp_path / "out", ok=False)
    assert process.returncode == 2 and "--bert_tokenizer: there is no vocabulary or configuration" in process.stderr
    assert "('/elsewhere')" in process.stderr and "which serves for both" in process.stderr
    for flag in ("--ck_bert", "--bert_tokenizer"):
        evaluate(tmp_path, wide_scenes, tmp_path / "out", flag, scenes / "bert")


def test_a_trained_checkpoint_is_evaluated_without_the_folder_of_its_bert(trained, wide_scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    content["args"] |= {"ck_bert": "/elsewhere", "bert_tokenizer": "/elsewhere"}
    torch.save(content, tmp_path / "last.pth")
    for checkpoint_folder in (trained, tmp_path):
        evaluate(checkpoint_folder, wide_scenes, tmp_path / checkpoint_folder.name)
    assert read_samples(tmp_path / trained.name) == read_samples(tmp_path / tmp_path.name)


def test_a_checkpoint_without_bert_says_so_loudly(trained, wide_scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    del content["bert_model"]
    torch.save(content, tmp_path / "last.pth")
    assert "WARNING" in evaluate(tmp_path, wide_scenes, tmp_path / "out").stdout


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--ckpt", "absent.pth"], 2, "--ckpt: there is no 'absent.pth'"),
    (["--ckpt", "README.md"], 1, "--ckpt: README.md cannot be read"),
    (["--test_parquet", "absent"], 2, "--test_parquet: there is no 'absent'"),
    (["--img_size", "32"], 2, "single position, on which InstanceNorm"),
    (["--iou_thresholds", "50,60"], 2, "numbers between 0 and 1"),
    (["--iou_thresholds", "a"], 2, "numbers between 0 and 1"),
    (["--out_dir", "README.md"], 2, "--out_dir: the folder 'README.md' cannot be made"),
    (["--text_ablation", "--shuffle_text"], 2, "leave out --shuffle_text"),
    (["--save", "some"], 2, "invalid choice"),
    (["--tta", "rotate"], 2, "invalid choice"),
    (["--window12"], 2, "--window12: there is no such flag here; leave it out, the checkpoint's tensors show it"),
    (["--model=lavt"], 2, "--model: there is no such flag here; leave it out"),
    (["--pretrained-swin-weights", "x.pth"], 2, "--pretrained-swin-weights: there is no such flag here"),
    (["--prefusion_model", "unet_fuser"], 2, "--prefusion_model: there is no such flag here"),
    (["--limit", "-1"], 2, "a whole number of at least 0"),
    (["-b", "0"], 2, "a whole number of at least 1")])
def test_what_cannot_work_ends_with_one_sentence(flags, code, message, trained, wide_scenes, tmp_path):
    process = evaluate(trained, wide_scenes, tmp_path, *flags, ok=False)
    assert process.returncode == code
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def changed(parquet, path, **columns):
    """The first four rows of a file with some columns replaced, each by a list or by a function of the old value."""
    rows = pq.read_table(parquet).slice(0, 4).to_pylist()
    for number, row in enumerate(rows):
        row |= {name: new(row[name]) if callable(new) else new[number] for name, new in columns.items()}
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def mask_file(height, width, filled) -> bytes:
    np.save(buffer := io.BytesIO(), np.full((height, width), filled, np.uint8))
    return buffer.getvalue()


def test_sentences_without_an_object_have_metrics_of_their_own(trained, wide_scenes, tmp_path):
    parquet = changed(wide_scenes, tmp_path / "a.parquet", segmentation=[mask_file(70, 100, n >= 2) for n in range(4)])
    process = evaluate(trained, parquet, tmp_path / "out")
    metrics, samples = read_metrics(tmp_path / "out"), read_samples(tmp_path / "out")
    assert metrics["num_samples"] == 4 and metrics["num_no_target"] == 2
    # Of the two without an object the union is what is predicted.
    scores = [int(sample["union"]) == 0 for sample in samples[:2]] + [float(sample["iou"]) for sample in samples[2:]]
    assert metrics["gIoU"] == pytest.approx(100 * np.mean(scores), abs=1e-3)
    assert metrics["N-acc"] == pytest.approx(100 * np.mean(scores[:2]))
    assert metrics["intervals_95"]["gIoU"][0] <= metrics["gIoU"] <= metrics["intervals_95"]["gIoU"][1]
    lines = " ".join(process.stdout.split())
    assert f"N-acc {metrics['N-acc']:.2f}" in lines and f"gIoU {metrics['gIoU']:.2f} [" in lines
    assert "2 sentences without an object" in process.stdout
    assert "2 sentences without an object" in (tmp_path / "out" / "report.html").read_text()


def test_an_object_that_the_networks_cannot_see_is_pointed_out_and_is_an_object(trained, wide_scenes, tmp_path):
    speck = np.zeros((700, 1000), np.uint8)
    speck[3, 3] = 1
    np.save(buffer := io.BytesIO(), speck)
    parquet = changed(wide_scenes, tmp_path / "a.parquet", segmentation=[buffer.getvalue()] + 3 * [
        mask_file(70, 100, 1)])
    process = evaluate(trained, parquet, tmp_path / "out", "--save", "none")
    assert "1 object too small to have a pixel at 64 px" in process.stdout
    assert "gIoU" not in read_metrics(tmp_path / "out")


def test_pictures_of_one_name_are_told_apart_by_their_content(trained, wide_scenes, tmp_path):
    def picture(shade):
        Image.new("RGB", (100, 70), (shade, 0, 9)).save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    parquet = changed(wide_scenes, tmp_path / "a.parquet", image_name=["frame.png"] * 4,
                      visible_image=[picture(shade) for shade in (10, 10, 90, 200)])
    process = evaluate(trained, parquet, tmp_path / "out", "--save", "none")
    metrics, samples = read_metrics(tmp_path / "out"), read_samples(tmp_path / "out")
    assert metrics["bootstrap"]["images"] == 3
    assert "image_name does not tell the pictures apart" in process.stdout
    assert "bootstrap resamples of 3 images" in process.stdout
    pictures = [sample["picture"] for sample in samples]
    assert pictures[0] == pictures[1] and len(set(pictures)) == 3
    compared = script("compare.py", tmp_path / "out", tmp_path / "out").stdout
    assert "4 samples of 3 images" in compared


def test_names_that_tell_pictures_apart_need_no_column_of_their_own(result):
    assert "picture" not in result.samples[0]
    assert result.metrics["bootstrap"]["images_by"] == "name"


def test_sentences_that_were_cut_are_counted(trained, wide_scenes, result, tmp_path):
    # 18 words between [CLS] and [SEP] fit, 19 do not
    parquet = changed(wide_scenes, tmp_path / "a.parquet",
                      question=["red " * 18, "red " * 19, "red " * 40, "the red disc"])
    process = evaluate(trained, parquet, tmp_path / "out", "--save", "none")
    assert "2 sentences of 4 cut to 20 tokens" in process.stdout
    assert read_metrics(tmp_path / "out")["notes"]["cut_sentences"] == 2
    assert "cut to" not in result.stdout


def damaged_checkpoint(trained, folder, value):
    content = checkpoint.read(str(trained / "last.pth"))
    key = next(key for key in content["prefusion_model"] if key.endswith("weight"))
    content["prefusion_model"][key].flatten()[:1] = value
    torch.save(content, folder / "last.pth")
    return key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, trained, wide_scenes, tmp_path):
    key = damaged_checkpoint(trained, tmp_path, value)
    process = evaluate(tmp_path, wide_scenes, tmp_path / "out", ok=False)
    assert process.returncode == 1
    assert f"the tensor {key!r} of 'prefusion_model' holds NaN or infinity" in process.stderr


def test_outputs_that_are_not_finite_are_named(trained, wide_scenes, tmp_path):
    damaged_checkpoint(trained, tmp_path, 3e38)
    process = evaluate(tmp_path, wide_scenes, tmp_path / "out", "--save", "none", "--limit", 2)
    assert "output is not finite (NaN or infinity) for 2 samples" in process.stdout
    assert "index 0, 1" in process.stdout
    assert read_metrics(tmp_path / "out")["notes"]["not_finite"] == [0, 1]


@pytest.mark.parametrize(("full", "left"), [
    ("Binary", {"metrics.json", "per_sample.csv", "report.html", "contact_sheet.png"}),
    ("contact_sheet.png", {"metrics.json", "per_sample.csv", "report.html"}),
    ("metrics.json", {"per_sample.csv", "report.html", "contact_sheet.png"}), ("", set())])
def test_a_full_disk_does_not_cost_the_figures(full, left, result, trained, tmp_path):
    replace = os.replace

    def fail(source, target):
        if full in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with mock.patch("utils.files.os.replace", fail):
        process = evaluate(trained, result.parquet, tmp_path / "out", ok=False)
    assert process.returncode == 1
    assert "it cannot be written (No space left on device)" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
    assert " ".join(["mIoU", f"{result.metrics['mIoU']:.2f}"]) in " ".join(process.stdout.split())
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == left
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    last = process.stdout.splitlines()[-1]
    assert all((name in last) == (name in left) for name in (
        "metrics.json", "per_sample.csv", "report.html", "contact_sheet.png"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_pictures_cannot_take_the_room_of_the_figures(trained, wide_scenes, tmp_path):
    room, replace = {}, os.replace

    def look(source, target):
        files = [os.stat(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                 if os.path.exists(f"/proc/self/fd/{name}")]
        folder = os.stat(tmp_path)
        room[os.path.basename(target)] = sum(file.st_size for file in files if not file.st_nlink
                                             and file.st_dev == folder.st_dev)
        replace(source, target)

    with mock.patch("utils.files.os.replace", look):
        evaluate(trained, wide_scenes, tmp_path / "out")
    figures = sum((tmp_path / "out" / name).stat().st_size for name in ("metrics.json", "per_sample.csv"))
    assert room["0.png"] - room["metrics.json"] > 10 * figures


def test_a_picture_that_is_interrupted_leaves_no_half_file(trained, wide_scenes, tmp_path):
    save = Image.Image.save

    def interrupted(image, path, *more, **options):
        if os.path.dirname(str(path)) == str(tmp_path / "out"):
            save(image, path, *more, **options)
            os.truncate(path, 100)
            raise KeyboardInterrupt
        save(image, path, *more, **options)

    with mock.patch.object(Image.Image, "save", interrupted):
        process = evaluate(trained, wide_scenes, tmp_path / "out", "--save", "none", ok=False)
    assert process.returncode == 130
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.json", "per_sample.csv", "report.html"}


FORMULAS = ["=1+1", "+1", "-1", "@a", "'=1", "''", "a=1", "\t=1"]


def test_cells_that_a_spreadsheet_would_compute_are_marked_and_read_back():
    cells = [as_cell(text) for text in FORMULAS]
    assert cells == ["'=1+1", "'+1", "'-1", "'@a", "''=1", "''", "a=1", "'\t=1"]
    assert [from_cell(cell) for cell in cells] == FORMULAS


def test_a_sentence_is_no_formula(trained, wide_scenes, tmp_path):
    parquet = changed(wide_scenes, tmp_path / "a.parquet", question=["=cmd|' /C calc'!A0", "-1 red", "a = b", "@red"],
                      image_name=["+a", "b", "c", "d"])
    evaluate(trained, parquet, tmp_path / "out", "--save", "none")
    samples = read_samples(tmp_path / "out")
    assert [sample["question"] for sample in samples] == ["'=cmd|' /C calc'!A0", "'-1 red", "a = b", "'@red"]
    assert samples[0]["image_name"] == "'+a"
    _, table = read_run(str(tmp_path / "out"))
    assert table["question"].tolist() == ["=cmd|' /C calc'!A0", "-1 red", "a = b", "@red"]
