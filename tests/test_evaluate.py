"""test.py, run as someone runs it who wants the numbers of a table."""
import argparse
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import script
from evaluations import arguments, evaluate, fused_stem, read_metrics, read_samples, write_wide_scenes
from PIL import Image

from utils import checkpoint
from utils.files import file_stem, unique_names


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
    torch.save(content, tmp_path / "last.pth")
    process = evaluate(tmp_path, wide_scenes, tmp_path / "out", ok=False)
    assert process.returncode == 2
    assert "--bert_tokenizer: neither the folder that the checkpoint names, '/elsewhere'" in process.stderr
    evaluate(tmp_path, wide_scenes, tmp_path / "out", "--ck_bert", scenes / "bert", "--bert_tokenizer", scenes / "bert")
    assert (tmp_path / "out" / "metrics.json").exists()


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
    (["--limit", "-1"], 2, "a whole number of at least 0"),
    (["-b", "0"], 2, "a whole number of at least 1")])
def test_what_cannot_work_ends_with_one_sentence(flags, code, message, trained, wide_scenes, tmp_path):
    process = evaluate(trained, wide_scenes, tmp_path, *flags, ok=False)
    assert process.returncode == code
    assert message in process.stderr
    assert "Traceback" not in process.stderr
