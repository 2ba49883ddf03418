"""The synthetic scenes: sentences mean one object, each camera sees its own attributes, files repeat byte for byte."""
import dataclasses
import io
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BertModel

from bert import Tokenizer
from bert.tiny import write_tiny_bert
from data import MMRISDataset, synthetic
from data.prepare import scenes
from data.prepare.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    TEMPERATURES,
    draw_infrared,
    draw_mask,
    draw_visible,
    make_scene,
)
from utils.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--train", "40", "--val", "12", "--test", "12", "--size", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "new"
    synthetic.main(["--out", str(path), *SMALL, "--seed", "3"])
    return path


@pytest.fixture(scope="module")
def some_scenes():
    return [make_scene((11, number)) for number in range(150)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_sentence(text):
    """The attributes in a referring expression, by its words."""
    words = re.fullmatch(
        rf"the (?:(hot|cold) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object)(?: ({'|'.join(PLACES)}))?", text)
    assert words, text
    found = dict(zip(("temperature", "colour", "shape", "place"), words.groups(), strict=True))
    return {name: value for name, value in found.items() if value not in {None, "object"}}


def fits(item, attributes):
    """Whether a person with both images before him would say that `item` has the attributes."""
    return all((
        attributes.get("shape", item.shape) == item.shape,
        attributes.get("place", item.place) == item.place,
        "colour" not in attributes or (not item.hidden and item.colour == attributes["colour"]),
        attributes.get("temperature", item.temperature) == item.temperature))


def test_the_command_writes_the_three_splits_and_a_bert(folder):
    assert sorted(contents(folder)) == sorted([
        "mm_ris_train.parquet", "mm_ris_val.parquet", "mm_ris_test.parquet", "bert/config.json",
        "bert/model.safetensors", "bert/tokenizer.json", "bert/tokenizer_config.json", "bert/vocab.txt"])
    for split, count in (("train", 40), ("val", 12), ("test", 12)):
        file = pq.ParquetFile(folder / f"mm_ris_{split}.parquet")
        assert file.metadata.num_rows == count
        assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 16
        assert {field.name: str(field.type) for field in file.schema_arrow} == {
            "index": "int64", "image_name": "string", "visible_image": "binary", "infrared_image": "binary",
            "question": "string", "segmentation": "binary"}


def test_the_files_make_a_data_set(folder):
    tokenizer = Tokenizer(str(folder / "bert"))
    dataset = MMRISDataset(str(folder / "mm_ris_train.parquet"), tokenizer, 64, originals=True)
    assert dataset.indices == list(range(40))
    for sample in dataset:
        assert sample["size"] == (64, 64) and sample["mask"].shape == (64, 64)
        assert 30 < sample["target"].sum() < 64 * 64 / 5
    unknown = tokenizer(["xqj ß"])[0]
    assert (unknown == 1).any() and not (dataset.input_ids == 1).any()  # 1 is [UNK]


def test_no_image_is_in_two_splits_and_some_carry_several_sentences(folder):
    images = [set(pq.read_table(folder / f"mm_ris_{split}.parquet")["visible_image"].to_pylist())
              for split in ("train", "val", "test")]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    rows = pq.read_table(folder / "mm_ris_train.parquet").to_pylist()
    assert 1 < max(Counter(row["image_name"] for row in rows).values()) <= 4
    names = {}
    for row in rows:
        assert names.setdefault(row["image_name"], row["visible_image"]) == row["visible_image"]
    assert len({(row["image_name"], row["question"]) for row in rows}) == len(rows)


def test_same_seed_same_bytes_in_another_process_and_other_seeds_differ(folder, tmp_path):
    # From another folder, with Python's hashing seeded otherwise.
    subprocess.run([sys.executable, str(ROOT / "data" / "synthetic.py"), "--out", "again", *SMALL, "--seed", "3"],
                   cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "5"}, check=True, capture_output=True)
    assert contents(tmp_path / "again") == contents(folder)
    synthetic.main(["--out", str(tmp_path / "other"), *SMALL, "--seed", "4"])
    other = contents(tmp_path / "other")
    for name in ("mm_ris_train.parquet", "mm_ris_val.parquet", "mm_ris_test.parquet", "bert/model.safetensors"):
        assert other[name] != contents(folder)[name]


def test_the_command_also_runs_as_a_module(tmp_path):
    counts = ["--train", "1", "--val", "1", "--test", "1"]
    done = subprocess.run([sys.executable, "-m", "data.synthetic", "--out", str(tmp_path), *counts],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(tmp_path / "mm_ris_val.parquet") in done.stdout


@pytest.mark.parametrize("arguments", [
    [], ["--out", "x", "--train", "0"], ["--out", "x", "--val", "a"], ["--out", "x", "--size", "16"],
    ["--out", "x", "--seed", "-1"], ["--out", "x", "--colour", "red"], ["--out", "x", "--seed", str(2**64)],
    ["--out", "x", "--size", "100000"], ["--out", "x", "--train", "1" + "0" * 12]])
def test_a_wrong_command_line_ends_with_2_and_writes_nothing(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        synthetic.main(arguments)
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())


def test_stopping_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    path = tmp_path / "mm_ris_train.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(synthetic, "draw_infrared", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic.main(["--out", str(tmp_path), *SMALL, "--overwrite"])
    assert contents(tmp_path) == {"mm_ris_train.parquet": b"old"}


@pytest.mark.parametrize("name", ["mm_ris_test.parquet", "bert/config.json"])
def test_a_data_set_that_is_there_is_replaced_only_when_asked(tmp_path, name):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_bytes(b"old")
    (tmp_path / name).write_bytes(b"old")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="is there already; choose another place, or --overwrite"):
        synthetic.main(["--out", str(tmp_path), *SMALL])
    assert contents(tmp_path) == before
    synthetic.main(["--out", str(tmp_path), "--train", "1", "--val", "1", "--test", "1", "--overwrite"])
    assert contents(tmp_path)[name] != b"old"


# Sentences


def test_every_sentence_fits_one_object_alone_and_the_mask_is_that_object(folder):
    rows = pq.read_table(folder / "mm_ris_test.parquet").to_pylist()
    for row in rows:
        number = int(re.search(r"\d+", row["image_name"])[0])
        scene = make_scene((3, synthetic.SPLITS.index("test"), number))
        assert np.array_equal(Image.open(io.BytesIO(row["infrared_image"])), draw_infrared(scene, 64))
        fitting = [item for item in scene.objects if fits(item, read_sentence(row["question"]))]
        assert len(fitting) == 1
        assert np.array_equal(np.load(io.BytesIO(row["segmentation"])), draw_mask(fitting[0], 64))


def test_expressions_are_exactly_the_unambiguous_ones(some_scenes):
    for scene in some_scenes:
        for target, item in enumerate(scene.objects):
            found = scenes.expressions(scene, target)
            assert all([other for other in scene.objects if fits(other, one)] == [item] for one in found)
            if all(fits(item, item.seen()) and not fits(other, item.seen())
                   for other in scene.objects if other is not item):
                assert item.seen() in found
            assert "ambient" not in {value for one in found for value in one.values()}


def sentences_of(some_scenes):
    """(scene, target, attributes) as the data set draws them."""
    rng = np.random.default_rng(0)
    drawn = [(scene, target, scenes.pick_expression(scene, target, rng))
             for scene in some_scenes for target in range(len(scene.objects))]
    return [one for one in drawn if one[2] is not None]


def test_sentences_are_short_and_long(some_scenes):
    drawn = sentences_of(some_scenes)
    lengths = Counter(len(attributes) for _, _, attributes in drawn)
    assert all(lengths[length] > 0.01 * len(drawn) for length in (1, 2, 3, 4))
    shortest = sum(not any(other.items() < attributes.items() for other in scenes.expressions(scene, target))
                   for scene, target, attributes in drawn)
    assert 0.4 < shortest / len(drawn) < 0.9
    for _, _, attributes in drawn:
        assert read_sentence(scenes.sentence(attributes)) == attributes


def solved_by(camera, scene, target, attributes):
    """Whether someone who sees one image only is left with the right object alone."""
    shows = (lambda item: not item.hidden) if camera == "visible" else (lambda item: item.temperature != "ambient")
    known = {name: value for name, value in attributes.items()
             if name != ("temperature" if camera == "visible" else "colour")}
    candidates = [item for item in scene.objects if shows(item) and fits(item, known)]
    return candidates == [scene.objects[target]]


def test_neither_image_can_be_left_out(some_scenes):
    drawn = sentences_of(some_scenes)
    solved = {camera: [solved_by(camera, *one) for one in drawn] for camera in ("visible", "infrared")}
    assert 0.25 < np.mean(solved["visible"]) < 0.65
    assert 0.25 < np.mean(solved["infrared"]) < 0.65
    neither = [not (a or b) for a, b in zip(solved["visible"], solved["infrared"], strict=True)]
    assert np.mean(neither) > 0.1


def test_the_sentence_cannot_be_left_out(some_scenes):
    drawn = sentences_of(some_scenes)
    # Betting always on the largest object, or on any kind of it, is right little more often than blind choice.
    chance = np.mean([1 / len(scene.objects) for scene, _, _ in drawn])
    largest = np.mean([scene.objects[target].radius == max(item.radius for item in scene.objects)
                       for scene, target, _ in drawn])
    assert abs(largest - chance) < 0.06
    for value in (*SHAPES, *COLOURS, *PLACES):
        share = np.mean([value in dataclasses.astuple(scene.objects[target]) for scene, target, _ in drawn])
        assert share < 0.45, value


# Images


def redrawn(scene, **changes):
    """The scene with attributes of its objects replaced by the next value of their lists."""
    def change(item):
        return dataclasses.replace(item, **{
            name: values[(values.index(getattr(item, name)) + 1) % len(values)] for name, values in changes.items()})
    return dataclasses.replace(scene, objects=tuple(map(change, scene.objects)))


def test_the_visible_image_shows_colours_and_no_temperature(some_scenes):
    for scene in some_scenes[:20]:
        image = draw_visible(scene, 64)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert np.array_equal(image, draw_visible(redrawn(scene, temperature=list(TEMPERATURES)), 64))
        changed = (image != draw_visible(redrawn(scene, colour=list(COLOURS)), 64)).any(-1)
        for item in scene.objects:
            assert (changed[draw_mask(item, 64) == 1].mean() > 0.9) != item.hidden


def test_the_infrared_image_shows_temperatures_and_no_colour(some_scenes):
    for scene in some_scenes[:20]:
        image = draw_infrared(scene, 64)
        assert image.shape == (64, 64) and image.dtype == np.uint8
        assert np.array_equal(image, draw_infrared(redrawn(scene, colour=list(COLOURS)), 64))
        dark = dataclasses.replace(scene, patches=())
        assert np.array_equal(image, draw_infrared(dark, 64))
        background = np.median(image)
        for item in scene.objects:
            level = image[draw_mask(item, 64) == 1].mean()
            assert {"hot": level > background + 40, "cold": level < background - 40,
                    "ambient": abs(level - background) < 40}[item.temperature]


def test_an_object_at_ambient_temperature_leaves_no_trace_in_the_infrared_image(some_scenes):
    ambient = [scene for scene in some_scenes if any(item.temperature == "ambient" for item in scene.objects)]
    assert 0.3 < len(ambient) / len(some_scenes) < 0.95
    for scene in ambient[:20]:
        others = tuple(dataclasses.replace(item, shape="disc", radius=0.1) if item.temperature == "ambient" else item
                       for item in scene.objects)
        assert np.array_equal(
            draw_infrared(scene, 64), draw_infrared(dataclasses.replace(scene, objects=others), 64))


def test_the_infrared_image_has_three_equal_channels(folder):
    dataset = MMRISDataset(str(folder / "mm_ris_val.parquet"), Tokenizer(str(folder / "bert")), 64)
    grey = dataset[0]["ir"] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
        [0.485, 0.456, 0.406]).view(3, 1, 1)
    assert torch.allclose(grey[0], grey[1], atol=1e-5) and torch.allclose(grey[0], grey[2], atol=1e-5)


def test_what_the_dark_hides_leaves_no_trace_in_the_visible_image(some_scenes):
    hidden = [scene for scene in some_scenes if any(item.hidden for item in scene.objects)]
    assert 0.5 < len(hidden) / len(some_scenes) < 0.95
    for scene in hidden[:20]:
        others = tuple(
            dataclasses.replace(item, shape="disc", radius=0.1) if item.hidden else item for item in scene.objects)
        image = draw_visible(scene, 64)
        assert np.array_equal(image, draw_visible(dataclasses.replace(scene, objects=others), 64))
        for item in scene.objects:
            if item.hidden:
                assert image[draw_mask(item, 64) == 1].mean() < 40
                assert item.temperature in {"hot", "cold"}
    assert any(len(scene.patches) > sum(item.hidden for item in scene.objects) for scene in some_scenes)


def test_objects_keep_apart_and_lie_where_their_place_says(some_scenes):
    for scene in some_scenes[:60]:
        assert 3 <= len(scene.objects) <= 4
        masks = [draw_mask(item, 96) for item in scene.objects]
        assert np.sum(masks, axis=0).max() == 1
        for item, mask in zip(scene.objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert rows.min() > 0 and columns.min() > 0 and rows.max() < 95 and columns.max() < 95
            assert 0.15 < max(np.ptp(rows), np.ptp(columns)) / 96 < 0.45
            x, y = columns.mean() / 95 - 0.5, rows.mean() / 95 - 0.5
            towards = {"on the left": -x, "on the right": x, "at the top": -y, "at the bottom": y}
            nearest = "in the middle" if max(towards.values()) < 0.15 else max(towards, key=towards.get)
            assert nearest == item.place


# The tiny BERT


def test_the_tiny_bert_loads_and_repeats(tmp_path):
    for name in ("a", "b"):
        write_tiny_bert(str(tmp_path / name), ["The hot disc", "a cold one, naïve"], seed=1, hidden=32, layers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    model = BertModel.from_pretrained(tmp_path / "a", add_pooling_layer=False)
    assert model.config.hidden_size == 32 and model.config.num_hidden_layers == 1
    tokenizer = Tokenizer(str(tmp_path / "a"))
    input_ids, attention_mask = tokenizer(["THE hot disc", "the hot discs", "The cold naive ☃"])
    words = (tmp_path / "a" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    spelled = [[words[i] for i in ids if i] for ids in input_ids.tolist()]
    assert spelled[0] == ["[CLS]", "the", "hot", "disc", "[SEP]"]
    assert spelled[1][:3] == ["[CLS]", "the", "hot"] and "[UNK]" not in spelled[1]
    assert spelled[2] == ["[CLS]", "the", "cold", "naive", "[UNK]", "[SEP]"]
    output = model(input_ids, attention_mask=attention_mask).last_hidden_state
    assert output.shape == (3, 20, 32)


def test_writing_the_tiny_bert_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    write_tiny_bert(str(tmp_path), ["a"], seed=9, hidden=8, layers=1, heads=1)
    assert torch.equal(torch.rand(1), expected)
