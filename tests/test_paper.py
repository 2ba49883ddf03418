"""What test.py says to someone who writes a paper: intervals, fusion metrics, the ablation of the text, the report."""
import argparse
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluations import evaluate, fused_stem, read_metrics, read_samples, write_wide_scenes
from PIL import Image

from bert import Tokenizer
from data import MMRISDataset
from evaluation.ablation import COLUMNS
from evaluation.fusion_metrics import NAMES, baselines, fusion_metrics


@pytest.fixture(scope="module")
def wide_scenes(scenes, tmp_path_factory):
    return write_wide_scenes(scenes, tmp_path_factory.mktemp("wide") / "test.parquet")


@pytest.fixture(scope="module")
def result(trained, wide_scenes, tmp_path_factory):
    """An evaluation without anything special."""
    return run(trained, wide_scenes, tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def paper(trained, wide_scenes, tmp_path_factory):
    """An evaluation with all that a paper wants to know."""
    return run(trained, wide_scenes, tmp_path_factory.mktemp("paper"), "--fusion_metrics", "--text_ablation", "-b", 3)


def run(trained, parquet, out_dir, *flags) -> argparse.Namespace:
    process = evaluate(trained, parquet, out_dir, *flags)
    return argparse.Namespace(out_dir=out_dir, stdout=process.stdout, parquet=parquet, metrics=read_metrics(out_dir),
                              samples=read_samples(out_dir))


def test_the_metrics_come_with_intervals_over_images(result):
    intervals = result.metrics["intervals_95"]
    assert list(intervals) == ["mIoU", "oIoU", *(f"precision@0.{t}" for t in range(5, 10))]
    assert all(low <= result.metrics[name] <= high for name, (low, high) in intervals.items())
    assert result.metrics["bootstrap"]["images"] == len({sample["image_name"] for sample in result.samples}) < 7
    line = "mIoU {:.2f} [{:.2f}, {:.2f}]".format(result.metrics["mIoU"], *intervals["mIoU"])
    assert line in " ".join(result.stdout.split())


def test_fusion_metrics_are_those_of_the_files_on_disk(paper, wide_scenes):
    source = pq.read_table(wide_scenes).to_pylist()
    measured = {"fused": [], "average": [], "maximum": []}
    for index, (row, sample) in enumerate(zip(source, paper.samples, strict=True)):
        pair = [luma(io.BytesIO(row[column])) for column in ("visible_image", "infrared_image")]
        stem = "_.._outside" if index == 0 else fused_stem(source, index)
        images = {"fused": luma(paper.out_dir / "fusion" / f"{stem}.jpg"), **baselines(*pair)}
        for name, image in images.items():
            measured[name].append(fusion_metrics(image, *pair))
        assert {name: float(sample[name]) for name in NAMES} == pytest.approx(measured["fused"][-1], abs=1e-5)
    assert list(paper.metrics["fusion_metrics"]) == list(measured)
    for image, values in measured.items():
        means = {name: np.mean([value[name] for value in values]) for name in NAMES}
        assert paper.metrics["fusion_metrics"][image] == pytest.approx(means, rel=1e-6)
        assert image in paper.stdout


def test_an_infrared_image_of_another_size_is_measured_at_that_of_the_visible_one(scenes, tiny_bert, tmp_path):
    row = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()[0]
    small = Image.open(io.BytesIO(row["infrared_image"])).convert("RGB").resize((40, 30))
    small.save(buffer := io.BytesIO(), "PNG")
    row["infrared_image"] = buffer.getvalue()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    sample = MMRISDataset(str(tmp_path / "a.parquet"), Tokenizer(tiny_bert), 64, originals=True, lumas=True)[0]
    visible, infrared = sample["lumas"]
    assert np.array_equal(visible, luma(io.BytesIO(row["visible_image"])))
    assert np.array_equal(infrared, np.asarray(small.convert("L").resize((64, 64), Image.Resampling.BILINEAR)))
    assert "vis" in sample


def luma(source) -> np.ndarray:
    return np.asarray(Image.open(source).convert("L"))


def test_the_text_ablation_shows_what_the_sentences_do(paper, result, trained, tmp_path):
    table = paper.metrics["text_ablation"]
    assert list(table) == ["true", "swapped", "empty"]
    assert table["true"] == {"mIoU": paper.metrics["mIoU"], "oIoU": paper.metrics["oIoU"], "change_inside": 0.0,
                             "change_outside": 0.0}
    assert all(table[name][f"change_{where}"] > 0 for name in ("swapped", "empty") for where in ("inside", "outside"))
    evaluate(trained, result.parquet, tmp_path, "--shuffle_text", "--save", "none")  # the same swap, run on its own
    swapped = read_metrics(tmp_path)
    assert [table["swapped"][name] for name in ("mIoU", "oIoU")] == pytest.approx(
        [swapped["mIoU"], swapped["oIoU"]], abs=0.05)
    assert f"swapped {table['swapped']['mIoU']:>9.2f}" in paper.stdout
    contrasts = paper.metrics["text_contrast"]
    assert list(contrasts) == ["true", "swapped", "empty", "own_larger", "intervals_95", "num_samples"]
    assert 0 < contrasts["true"] != contrasts["swapped"] != contrasts["empty"]
    for name, (low, high) in contrasts["intervals_95"].items():
        assert low <= contrasts[name] <= high
    assert f"{contrasts['own_larger']:.2f} % of {contrasts['num_samples']} samples" in paper.stdout


def test_what_is_measured_besides_leaves_the_metrics_alone(paper, result):
    assert paper.metrics["mIoU"] == pytest.approx(result.metrics["mIoU"], abs=0.05)
    assert list(paper.samples[0]) == [*result.samples[0], *NAMES, *COLUMNS]


def test_the_report_is_one_page_that_needs_nothing_else(paper):
    page = (paper.out_dir / "report.html").read_text()
    assert "http:" not in page and "https:" not in page
    assert page.count("<img ") == page.count('src="data:image/jpeg;base64,') == 6 * 5 + 3 * 3
    for text in ("Best", "Median", "Worst", "own sentence", "other sentence", "Qabf", "swapped",
                 f"{paper.metrics['mIoU']:.2f}"):
        assert f">{text}<" in page


def test_bfloat16_changes_little(result, trained, tmp_path):
    evaluate(trained, result.parquet, tmp_path, "--amp", "--save", "none")
    metrics = read_metrics(tmp_path)
    assert metrics["mIoU"] == pytest.approx(result.metrics["mIoU"], abs=5)
    assert read_samples(tmp_path) != result.samples  # it did compute otherwise


def test_flipping_averages_with_the_mirror_image(result, trained, tmp_path):
    evaluate(trained, result.parquet, tmp_path, "--tta", "flip", "--save", "all", "--limit", 2)
    settings = read_metrics(tmp_path)["settings"]
    assert settings == result.metrics["settings"] | {"tta": "flip", "limit": 2}
    assert settings["img_size"] == 64 and settings["ckpt"].endswith("last.pth")  # the size, as the checkpoint says
    assert (settings["device"], settings["torch"]) == ("cpu", torch.__version__)
    for path in (tmp_path / "fusion").iterdir():
        assert path.read_bytes() != (result.out_dir / "fusion" / path.name).read_bytes()


def spoilt(parquet, path, rows):
    """The file with visible images cut off in the middle."""
    table = pq.read_table(parquet).to_pylist()
    for row in rows:
        table[row]["visible_image"] = table[row]["visible_image"][:500]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def test_rows_that_cannot_be_used_are_left_out_and_listed(result, trained, tmp_path):
    parquet = spoilt(result.parquet, tmp_path / "spoilt.parquet", [2, 5])
    found = run(trained, parquet, tmp_path / "out", "--bad_rows", "skip", "--fusion_metrics", "--text_ablation",
                "-b", 1)  # so that a batch can be of nothing but bad rows
    assert found.metrics["bad_rows"]["count"] == 2
    assert ["row 2" in message or "row 5" in message for message in found.metrics["bad_rows"]["messages"]] == [True] * 2
    assert "2 rows left out:" in found.stdout
    assert all(message in found.stdout for message in found.metrics["bad_rows"]["messages"])
    assert "Rows left out" in (tmp_path / "out" / "report.html").read_text()
    good = [sample for row, sample in enumerate(result.samples) if row not in (2, 5)]
    assert [{name: sample[name] for name in good[0]} for sample in found.samples] == good
    assert found.metrics["num_samples"] == 5
    assert found.metrics["mIoU"] == pytest.approx(np.mean([100 * float(sample["iou"]) for sample in good]), abs=1e-3)
    assert len(list((tmp_path / "out" / "Binary").iterdir())) == 5


def test_a_row_that_cannot_be_used_ends_the_run_unless_told_otherwise(result, trained, tmp_path):
    parquet = spoilt(result.parquet, tmp_path / "spoilt.parquet", [2])
    process = evaluate(trained, parquet, tmp_path / "out", ok=False)
    assert process.returncode == 1
    assert "row 2: visible_image" in process.stderr


def test_a_set_without_a_single_good_row_has_no_metrics(result, trained, tmp_path):
    parquet = spoilt(result.parquet, tmp_path / "spoilt.parquet", range(7))
    process = evaluate(trained, parquet, tmp_path / "out", "--bad_rows", "skip", ok=False)
    assert process.returncode == 1
    assert "none of the rows can be used" in process.stderr
