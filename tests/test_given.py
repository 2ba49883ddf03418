"""Fused images that any method has made: as a column of the data, or in a folder beside it."""
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import arguments, epochs_of, in_process, train
from evaluations import evaluate, read_metrics, read_samples
from PIL import Image
from rows import encode, make_row, tiny_tokenizer, write

from benchmarks.reference import inputs
from data import MMRISDataset, add_fused, check_parquet, merge_parquet, row_cache
from data.columns import FUSED
from data.decode import decode_lumas
from data.fused_pictures import match_rows
from data.parquet_rows import ReadLimits
from evaluation.fusion_metrics import baselines
from evaluation.inference import Inference
from models import build_model, inputs_of
from predictor import Predictor
from utils import checkpoint
from utils.errors import InputError, UsageError

SPLITS = ("train", "val", "test")


def write_averages(parquet, folder):
    """The average of both lumas of each image of a data set, as `{image_name}.png`."""
    folder.mkdir()
    for row in pq.read_table(parquet).to_pylist():
        average = baselines(*decode_lumas(row["visible_image"], row["infrared_image"]))["average"]
        Image.fromarray(average).save(folder / f"{row['image_name']}.png")
    return folder


@pytest.fixture(scope="module")
def averages(scenes, tmp_path_factory):
    return write_averages(scenes / "mm_ris_test.parquet", tmp_path_factory.mktemp("averages") / "test")


@pytest.fixture(scope="module")
def given(scenes, tmp_path_factory):
    """The scenes with the column, and in `run` what a training run on them left."""
    folder = tmp_path_factory.mktemp("given")
    shutil.copytree(scenes / "bert", folder / "bert")
    for split in SPLITS:
        source = scenes / f"mm_ris_{split}.parquet"
        pictures = write_averages(source, folder / split)
        add_fused.main([str(source), "--fused", str(pictures), "--out", str(folder / source.name)])
    train(folder, folder / "run", "--prefusion_model", "given", "--epochs", 1, "--eval_vis_dir", "")
    return folder


def test_training_on_given_images_logs_the_fusion_terms_and_stores_no_fuser(given):
    content = checkpoint.read(str(given / "run" / "model_best_lavt.pth"))
    assert content["prefusion_model"] == {} and content["args"]["prefusion_model"] == "given"
    entry, = epochs_of(given / "run")
    assert entry["fusion"] > 0 and entry["ssim_vis"] > 0


def test_training_depends_on_the_given_images(given, scenes, tmp_path):
    shutil.copytree(scenes / "bert", tmp_path / "bert")
    for split in SPLITS[:2]:
        rows = pq.read_table(given / f"mm_ris_{split}.parquet").to_pylist()
        write(tmp_path / f"mm_ris_{split}.parquet", [row | {FUSED: encode(np.zeros((8, 9), np.uint8))} for row in rows])
    train(tmp_path, tmp_path, "--prefusion_model", "given", "--epochs", 1, "--eval_vis_dir", "")
    assert epochs_of(tmp_path)[0]["mse_vis"] > 2 * epochs_of(given / "run")[0]["mse_vis"]


def test_evaluation_measures_given_images_as_they_are(given, tmp_path):
    evaluate(given / "run", given / "mm_ris_test.parquet", tmp_path / "column", "--fusion_metrics", "--text_ablation",
             "--tta", "flip")
    results = read_metrics(tmp_path / "column")
    assert results["fusion_metrics"]["fused"] == results["fusion_metrics"]["average"]
    assert results["text_ablation"]["swapped"]["change_inside"] == 0
    assert "fused_images" not in results["settings"]
    # The same pictures from the folder, of a file without the column: the same figures.
    table = pq.read_table(given / "mm_ris_test.parquet").drop_columns([FUSED])
    pq.write_table(table, tmp_path / "plain.parquet")
    evaluate(given / "run", tmp_path / "plain.parquet", tmp_path / "folder", "--fusion_metrics", "--text_ablation",
             "--tta", "flip", "--fused_images", given / "test")
    assert (tmp_path / "folder" / "per_sample.csv").read_text() == (tmp_path / "column" / "per_sample.csv").read_text()


def test_any_segmenter_is_evaluated_on_pictures_of_a_folder(trained, scenes, averages, tmp_path):
    result = evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path / "a", "--fusion_metrics", "--text_ablation",
                      "--fused_images", averages)
    assert (f"the fused images are the pictures in {averages}; the checkpoint's own fusion (prefusion_model "
            "unet_fuser) is not used") in result.stdout
    results = read_metrics(tmp_path / "a")
    assert results["fusion_metrics"]["fused"] == results["fusion_metrics"]["average"]
    assert results["text_ablation"]["swapped"]["change_inside"] == 0
    assert results["settings"]["fused_images"] == str(averages)
    evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path / "own", "--save", "none")
    own = read_metrics(tmp_path / "own")
    assert "fused_images" not in own["settings"] and own["mIoU"] != results["mIoU"]


def test_the_fused_images_of_an_evaluation_fit_the_rows_of_another(trained, scenes, tmp_path):
    evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path / "own", "--save", "all")
    evaluate(trained, scenes / "mm_ris_test.parquet", tmp_path / "other", "--save", "none", "--fused_images",
             tmp_path / "own" / "fusion")
    one, other = (read_metrics(tmp_path / name)["mIoU"] for name in ("own", "other"))
    assert one == pytest.approx(other, abs=2), "but for the JPEG compression"


def test_missing_pictures_are_named_unless_their_rows_are_left_out(trained, scenes, averages, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(averages, folder)
    names = pq.read_table(scenes / "mm_ris_test.parquet")["image_name"].to_pylist()
    lost = [row for row, name in enumerate(names) if name == names[-1]]
    (folder / f"{names[-1]}.png").unlink()
    words = (trained, scenes / "mm_ris_test.parquet", tmp_path / "out", "--save", "none", "--fused_images", folder)
    result = evaluate(*words, ok=False)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert (f"error: --fused_images: {folder} has no picture of {len(lost)} of 7 rows: {names[-1]} "
            f"(index {lost[0]})") in result.stderr
    evaluate(*words, "--limit", lost[0])
    assert len(read_samples(tmp_path / "out")) == lost[0]
    assert f"{len(lost)} row" in evaluate(*words, "--bad_rows", "skip").stdout
    assert len(read_samples(tmp_path / "out")) == 7 - len(lost)
    shutil.rmtree(folder)
    folder.mkdir()
    result = evaluate(*words, "--bad_rows", "skip", ok=False)
    assert result.returncode == 1 and f"{folder} has no picture of 7 of 7 rows" in result.stderr


def test_a_picture_of_another_size_is_refused_only_where_pixels_are_compared(trained, scenes, averages, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(averages, folder)
    path = sorted(folder.iterdir())[0]
    Image.open(path).resize((40, 30)).save(path)
    words = (trained, scenes / "mm_ris_test.parquet", tmp_path / "out", "--save", "none", "--fused_images", folder)
    evaluate(*words)
    result = evaluate(*words, "--fusion_metrics", ok=False)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert f"{path} is of 40×30 px, but the visible image of 64×64 px; the fusion metrics compare" in result.stderr
    path.write_bytes(b"no picture")
    result = evaluate(*words, ok=False)
    assert result.returncode == 1 and f"{path} cannot be decoded as an image" in result.stderr


def test_what_a_given_checkpoint_or_file_lacks_is_one_sentence(given, scenes, averages, tmp_path):
    best, picture = given / "run" / "model_best_lavt.pth", sorted(averages.iterdir())[0]
    results = [
        (train(scenes, tmp_path / "a", "--prefusion_model", "given", ok=False), 1,
         f"{scenes / 'mm_ris_train.parquet'}: column fused_image is missing"),
        (train(given, tmp_path / "a", "--prefusion_model", "given", "--train_fuser_only", ok=False), 2,
         "--train_fuser_only: --prefusion_model given has no parameters to train"),
        (evaluate(given / "run", scenes / "mm_ris_test.parquet", tmp_path / "b", ok=False), 1,
         "column fused_image is missing"),
        (evaluate(given / "run", scenes / "mm_ris_test.parquet", tmp_path / "b", "--fused_images", tmp_path / "none",
                  ok=False), 2, "--fused_images: there is no folder"),
        (in_process("predict.py", "--ckpt", best, "--visible", picture, "--infrared", picture, "--text", "the disc",
                    "--out", tmp_path / "c", "--device", "cpu", ok=False), 1, "so it cannot fuse a pair of images")]
    for result, code, message in results:
        assert result.returncode == code and message in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert "data/add_fused.py adds it from a folder of pictures" in results[0][0].stderr
    with pytest.raises(ValueError, match="prefusion_model given"):
        Predictor.from_checkpoint(best, "cpu")


def test_a_resumed_or_later_run_reads_the_given_images_again(given, scenes, tmp_path):
    flags = ("--prefusion_model", "given", "--epochs", 1, "--eval_vis_dir", "")
    train(given, tmp_path, *flags, "--init_from", given / "run" / "last.pth")
    result = train(given, tmp_path, "--prefusion_model", "given", "--eval_only", "--resume", given / "run" / "last.pth")
    assert "mIoU" in result.stdout
    result = train(scenes, tmp_path / "other", "--resume", given / "run" / "last.pth", ok=False)
    assert "was trained with prefusion_model given, and this run has unet_fuser" in result.stderr


def test_the_fused_image_of_a_pair_is_the_given_one_also_where_mirrored_images_are_averaged(tiny_bert):
    model = build_model(arguments(swin_type="micro", ck_bert=tiny_bert, prefusion_model="given")).eval()
    batch = inputs(48, 64, vocab=20)
    batch["given"] = batch["ir"].flip(2)
    with torch.no_grad():
        for flip in (False, True):
            assert torch.allclose(Inference(model, flip)(*inputs_of(batch)).fused, batch["given"], atol=1e-6)
        with pytest.raises(ValueError, match="a fused image must be given with each pair"):
            model(*inputs_of(inputs(48, 64, vocab=20)))


def matches(folder, names, indices, *files):
    """The files that rows are given, by their names."""
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"")
    found = match_rows(str(folder), names, indices)
    return [path and path[len(str(folder)) + 1:] for path in found.paths], len(found.alone)


def test_pictures_are_found_by_name_and_index_then_name_then_index(tmp_path):
    names = ["a.jpg", "a.jpg", "b.jpg", "day/c.png", "c", "scene.1"]
    assert matches(tmp_path / "p", names, [0, 1, 2, 3, 4, 5], "a_1.png", "A.BMP", "2.png", "day/c.jpg", "c_4.png",
                   "scene.1.png", "scene.png", "more.png", "array.npy") == (
        ["A.BMP", "a_1.png", "2.png", "day/c.jpg", "c_4.png", "scene.1.png"], 2)
    # What an evaluation names its fused images.
    assert matches(tmp_path / "q", names, [0, 1, 2, 3, 4, 5], "a.jpg_0.jpg", "a.jpg_1.jpg", "b.jpg.jpg",
                   "day_c.png.jpg", "c.jpg") == (
        ["a.jpg_0.jpg", "a.jpg_1.jpg", "b.jpg.jpg", "day_c.png.jpg", "c.jpg", None], 0)


def test_no_row_is_given_the_picture_of_another_image(tmp_path):
    assert matches(tmp_path / "p", ["a", "a_0.png", "1"], [0, 1, 2], "a.png", "a_0.png") == (["a.png", "a_0.png", None],
                                                                                         0)
    assert matches(tmp_path / "q", ["x", "0", "y"], [0, 1, 2], "0.png", "y.png") == ([None, "0.png", "y.png"], 0)
    for name in ("b.png", "B.png"):
        (tmp_path / "p" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"B\.png and .*b\.png differ in upper and lower case alone"):
        match_rows(str(tmp_path / "p"), ["a"], [0])


@pytest.fixture
def rows(tmp_path):
    """Twenty rows in `a.parquet`, and in `fused/` a picture of each; their names follow three patterns."""
    (tmp_path / "fused").mkdir()
    content = [make_row(number) for number in range(20)]
    for number, row in enumerate(content):
        name = (f"{number}", f"{number}.png_{row['index']}", str(row["index"]))[number % 3]
        (tmp_path / "fused" / f"{name}.png").write_bytes(encode(np.full((37, 53), number, np.uint8)))
    write(tmp_path / "a.parquet", content, 7)
    return content


def add(tmp_path, *more, out="b.parquet"):
    add_fused.main([str(tmp_path / "a.parquet"), "--fused", str(tmp_path / "fused"), "--out", str(tmp_path / out),
                    *more])


def value_of(cell):
    return np.asarray(Image.open(io.BytesIO(cell)))[0, 0]


def test_a_column_is_added_and_the_others_stay(rows, tmp_path, capsys):
    Image.new("L", (5, 5)).save(tmp_path / "fused" / "extra.png")
    add(tmp_path)
    added = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert [value_of(row.pop(FUSED)) for row in added] == list(range(20))
    assert added == rows
    said = capsys.readouterr().out
    assert "b.parquet: 20 rows, 20 fused pictures" in said and "1 picture in" in said and "extra.png" in said
    # Again: the column is replaced. Merged: it is kept.
    (tmp_path / "fused" / "0.png").write_bytes(encode(np.full((37, 53), 99, np.uint8)))
    shutil.move(tmp_path / "b.parquet", tmp_path / "a.parquet")
    add(tmp_path)
    merge_parquet.main([str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet"), "--out", str(tmp_path / "c.parquet")])
    values = [value_of(row[FUSED]) for row in pq.read_table(tmp_path / "c.parquet").to_pylist()]
    assert values == [99, *range(1, 20), *range(20)]


def test_every_mistake_is_listed_and_nothing_written(rows, tmp_path):
    for name in ("3.png", "7.png_107.png"):
        (tmp_path / "fused" / name).unlink()
    with pytest.raises(InputError) as caught:
        add(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 mistakes; nothing was written" and len(lines) == 3
    assert lines[1].endswith(f"row 3 (image_name 3.png, index 103): {tmp_path / 'fused'} has no picture of it")
    for name in ("3.png", "7.png"):
        (tmp_path / "fused" / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"(?s)2 mistakes.*row 3 .*cannot be decoded.*row 7 .*cannot be decoded"):
        add(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "fused"]


@pytest.mark.parametrize("change, message", [
    ({"a.parquet": "none.parquet"}, "none.parquet: there is no such file"), ({"fused": "none"}, "--fused: there is no"),
    ({"b.parquet": "a.parquet"}, "a.parquet is there already"),
    ({"b.parquet": "none/b.parquet"}, "is not a file name in an existing folder")])
def test_a_wrong_command_line_is_one_sentence(rows, tmp_path, change, message):
    names = [change.get(name, name) for name in ("a.parquet", "fused", "b.parquet")]
    data, fused, out = (str(tmp_path / name) for name in names)
    with pytest.raises(UsageError, match=message):
        add_fused.main([data, "--fused", fused, "--out", out])


def test_checking_a_file_looks_at_the_column(rows, tmp_path):
    add(tmp_path)
    content = pq.read_table(tmp_path / "b.parquet").to_pylist()
    content[1][FUSED], content[2][FUSED] = None, b"no picture"
    content[3][FUSED] = encode(np.zeros((9, 8), np.uint8))
    write(tmp_path / "b.parquet", content)
    with pytest.raises(InputError, match="2 problems with rows"):
        check_parquet.main([str(tmp_path / "b.parquet"), "--out_dir", str(tmp_path), "-j", "0", "--samples", "0"])
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert [(found["row"], found["column"], found["kind"]) for found in problems] == [
        (1, FUSED, "null"), (2, FUSED, "damaged"), (3, FUSED, "size")]
    write(tmp_path / "b.parquet", [row | {FUSED: 1} for row in content])
    with pytest.raises(InputError, match="1 problem"):
        check_parquet.main([str(tmp_path / "b.parquet"), "--out_dir", str(tmp_path), "-j", "0", "--samples", "0"])


def test_a_copy_in_small_row_groups_without_the_column_is_made_again(rows, tmp_path):
    add(tmp_path)
    tokenizer = tiny_tokenizer(tmp_path / "bert")
    path, cache, limits = str(tmp_path / "b.parquet"), str(tmp_path / "cache"), ReadLimits(few_rows=2, small_bytes=1)

    def last():
        return MMRISDataset(path, tokenizer, 40, cache_dir=cache, limits=limits, fused=True)[19]["given"]

    given = last()
    copy = row_cache.cache_path(path, cache)
    pq.write_table(pq.read_table(copy).drop_columns([FUSED]), copy)  # as earlier versions wrote it
    assert last().equal(given)


def test_pictures_of_another_method_have_their_own_size(given, averages, tmp_path):
    for flags in (["--fused_images", averages], []):
        result = evaluate(given / "run", given / "mm_ris_test.parquet", tmp_path, "--fuse_size", "native", *flags,
                          ok=False)
        assert result.returncode == 2 and "--fuse_size: " in result.stderr and "leave it out" in result.stderr
