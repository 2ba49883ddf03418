"""Folders and a table to parquet: the same bytes and masks, parts without a shared image, a place for each mistake."""
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from data import MMRISDataset, build_parquet
from data.prepare.shapes import mask_from_polygon, mask_from_rle
from utils.errors import InputError, UsageError

SCRIPT = Path(__file__).resolve().parent.parent / "data" / "build_parquet.py"
HEIGHT, WIDTH = 24, 32


@pytest.fixture
def folder(tmp_path):
    """Six pairs a0 … a5, each with the mask of its name."""
    rng = np.random.default_rng(0)
    for name in ("visible", "infrared", "masks"):
        (tmp_path / name).mkdir()
    for number in range(6):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "visible" / f"a{number}.jpg")
        Image.fromarray(pixels[..., 0]).save(tmp_path / "infrared" / f"a{number}.png")
        Image.fromarray(box(number)).save(tmp_path / "masks" / f"a{number}.png")
    return tmp_path


def box(number):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 3 + number:10 + number] = 255
    return mask


def write_csv(folder, *rows, header=("image", "expression")):
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "table.csv"


def write_json(folder, *entries, name="table.json"):
    text = json.dumps(entries) if name.endswith(".json") else "\n".join(map(json.dumps, entries))
    (folder / name).write_text(text)
    return folder / name


def build(table, *more):
    out = table.parent / "out.parquet"
    build_parquet.main([str(table), "--out", str(out), "--overwrite", *map(str, more)])
    return pq.read_table(out).to_pylist()


def test_a_file_that_is_there_is_replaced_only_when_asked(folder):
    table = write_csv(folder, ("a0", "the box"))
    build(table)
    with pytest.raises(UsageError, match="out.parquet is there already; choose another place, or --overwrite"):
        build_parquet.main([str(table), "--out", str(table.parent / "out.parquet")])


def mistakes_of(table, *more):
    with pytest.raises(InputError) as caught:
        build(table, *more)
    assert not list(table.parent.glob("*out.parquet*")), "nothing is left behind"
    return str(caught.value)


def mask_of(row):
    return np.load(io.BytesIO(row["segmentation"]), allow_pickle=False)


def test_images_keep_their_bytes_and_masks_match_by_name(folder, capsys):
    rows = build(write_csv(folder, ("a1.jpg", "the left one"), ("a0", "der rote Würfel, links")))
    assert [row["index"] for row in rows] == [0, 1]
    assert [row["image_name"] for row in rows] == ["a1.jpg", "a0.jpg"]
    assert [row["question"] for row in rows] == ["the left one", "der rote Würfel, links"]
    for row, number in zip(rows, (1, 0), strict=True):
        assert row["visible_image"] == (folder / "visible" / f"a{number}.jpg").read_bytes()
        assert row["infrared_image"] == (folder / "infrared" / f"a{number}.png").read_bytes()
        np.testing.assert_array_equal(mask_of(row), box(number) > 0)
    said = capsys.readouterr().out
    assert "out.parquet: 2 rows, 2 images" in said and "4 images" in said and "the first is a2.jpg" in said


def test_fused_pictures_become_a_column(folder, capsys):
    (folder / "fused").mkdir()
    for name, size in (("a1", (32, 24)), ("a0_1", (32, 24)), ("2", (16, 12))):
        Image.new("RGB", size, (10 * size[0] // 16, 0, 0)).save(folder / "fused" / f"{name}.png")
    table = write_csv(folder, ("a1.jpg", "the left one"), ("a0", "the right one"), ("a2", "another"))
    rows = build(table, "--fused", folder / "fused")
    assert [row["fused_image"] for row in rows] == [
        (folder / "fused" / f"{name}.png").read_bytes() for name in ("a1", "a0_1", "2")]
    assert f"another size than the visible one: {folder / 'fused' / '2.png'}" in capsys.readouterr().out
    (folder / "out.parquet").unlink()
    (folder / "fused" / "a1.png").write_bytes(b"no picture")
    assert "a1.png cannot be decoded" in mistakes_of(table, "--fused", folder / "fused")
    for name in ("a1", "2"):
        (folder / "fused" / f"{name}.png").unlink()
    message = mistakes_of(table, "--fused", folder / "fused")
    assert message.startswith("2 mistakes") and "line 2: " in message and "fused has no picture of a2.jpg" in message
    with pytest.raises(UsageError, match="--fused: there is no folder"):
        build(table, "--fused", folder / "none")


def test_the_data_set_reads_what_was_built_in_groups_of_16(folder, tiny_bert):
    from bert import Tokenizer

    build(write_csv(folder, *[(f"a{number % 6}", f"object {number}") for number in range(20)]))
    metadata = pq.ParquetFile(folder / "out.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [16, 4]
    dataset = MMRISDataset(str(folder / "out.parquet"), Tokenizer(tiny_bert), img_size=HEIGHT, originals=True)
    assert len(dataset) == 20
    np.testing.assert_array_equal(dataset[7]["mask"], box(1) > 0)


def test_polygon_and_rle_and_mask_file_give_the_same_mask(folder):
    rle = coco.encode(np.asfortranarray(box(2) // 255))
    packed = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    flat = box(2).T.ravel() > 0
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    corners = [[5, 4], [12, 4], [12, 12], [5, 12]]
    np.save(folder / "masks" / "as_array.npy", box(2) > 0)
    Image.fromarray(box(2).astype(np.uint16) * 100).save(folder / "masks" / "deep.png")
    Image.fromarray(box(2)).convert("RGBA").save(folder / "masks" / "colours.png")
    rows = build(write_json(
        folder, *[{"image": "a2", "expression": "it", **shape} for shape in (
            {}, {"mask": "a2.png"}, {"mask": "as_array"}, {"mask": "deep"}, {"mask": "colours"}, {"rle": packed},
            {"rle": {"size": [HEIGHT, WIDTH], "counts": counts}}, {"polygon": corners}, {"polygon": sum(corners, [])},
            {"polygon": [sum(corners, [])]}, {"polygon": [corners, corners]})]))
    for row in rows:
        np.testing.assert_array_equal(mask_of(row), box(2) > 0)


def test_shapes_stand_in_csv_cells_as_json_and_lines_of_json_work_too(folder):
    polygon = [5, 4, 12, 4, 12, 12, 5, 12]
    from_csv = build(write_csv(folder, ("a2", "it", json.dumps(polygon)), header=("image", "expression", "polygon")))
    from_lines = build(write_json(folder, {"image": "a2", "expression": "it", "polygon": polygon}, name="t.jsonl"))
    assert from_csv == from_lines and (mask_of(from_csv[0]) == (box(2) > 0)).all()


def test_tabs_may_separate_the_cells(folder):
    """As spreadsheets export them: commas stand as they are, and quotation marks around a cell are left out."""
    polygon = [5, 4, 12, 4, 12, 12, 5, 12]
    (folder / "table.tsv").write_bytes("\r\n".join("\t".join(cells) for cells in (
        ("image", "expression", "polygon", "notes"), ("a2.jpg", "the red one, left", json.dumps(polygon), "x"),
        ("a1", '"der ""Würfel"""', "", ""))).encode("utf-8-sig"))
    rows = build(folder / "table.tsv")
    assert [row["image_name"] for row in rows] == ["a2.jpg", "a1.jpg"]
    assert [row["question"] for row in rows] == ["the red one, left", 'der "Würfel"']
    assert (mask_of(rows[0]) == (box(2) > 0)).all() and (mask_of(rows[1]) == (box(1) > 0)).all()


def test_a_jpeg_mask_is_cut_at_half_brightness(folder):
    Image.fromarray(box(0)).save(folder / "masks" / "blurred.jpg", quality=60)
    row = build(write_json(folder, {"image": "a0", "expression": "it", "mask": "blurred.jpg"}))[0]
    assert (mask_of(row) != (box(0) > 0)).sum() <= 2


def split(folder, table, shares, seed=0):
    build_parquet.main([str(table), "--out", str(folder), "--overwrite", "--split", shares, "--seed", str(seed)])
    return {name: pq.read_table(folder / f"mm_ris_{name}.parquet").to_pylist() for name in ("train", "val", "test")}


def test_no_image_lands_in_two_parts_and_the_seed_decides(folder, tmp_path_factory):
    (folder / "visible" / "copy.jpg").write_bytes((folder / "visible" / "a0.jpg").read_bytes())
    Image.fromarray(box(0)).save(folder / "infrared" / "copy.png")
    Image.fromarray(box(0)).save(folder / "masks" / "copy.png")
    rows = [(name, f"{name} number {i}") for i in range(3) for name in ("a0", "a1", "a2", "a3", "a4", "a5", "copy")]
    outs = [tmp_path_factory.mktemp("out") for _ in range(3)]
    for seed in range(4):
        parts = split(outs[0], write_csv(folder, *rows), "4,1,1", seed)
        pixels = [{row["visible_image"] for row in part} for part in parts.values()]
        assert [len(part) for part in pixels] == [4, 1, 1]
        assert len(set.union(*pixels)) == 6, "the copy stays with its original"
        assert sorted(row["index"] for part in parts.values() for row in part) == list(range(21))
    again = split(outs[1], write_csv(folder, *rows[::-1]), "0.66,0.17,0.17", 3)
    other = split(outs[2], write_csv(folder, *rows), "4,1,1", 4)
    names = [[sorted({row["image_name"] for row in part}) for part in p.values()] for p in (parts, again, other)]
    assert names[0] == names[1] != names[2], "whatever the order of the table"


def test_too_few_images_for_the_parts_are_refused(folder):
    with pytest.raises(UsageError, match="2 different images cannot make up 3 parts"):
        split(folder, write_csv(folder, ("a0", "x"), ("a1", "y")), "8,1,1")
    assert not list(folder.glob("*.parquet"))


@pytest.mark.parametrize("rows, reason", [
    ([("a0", "x"), ("b7", "y")], "line 3: .*visible has no picture 'b7'"),
    ([("../infrared/a0", "x")], "line 2: .*visible has no picture"),
    ([("a0", " ")], "line 2: expression is empty"),
    ([("a0", "x", "y")], "line 2: has 3 cells, the first line 2 .*quotation marks"),
])
def test_a_mistake_in_the_table_is_reported_with_its_line(folder, rows, reason):
    message = mistakes_of(write_csv(folder, *rows))
    assert re.search(rf"table.csv, {reason}", message), message


POLYGON = [5, 4, 12, 4, 12, 12]


@pytest.mark.parametrize("entry, reason", [
    ({"expression": "x"}, "image is missing"),
    ({"image": 3, "expression": "x"}, "image must be text"),
    ({"image": "a0", "expression": "x", "mask": "lost.png"}, "masks has no picture 'lost.png'"),
    ({"image": "a0", "expression": "x", "mask": "a0", "polygon": POLYGON}, "has mask and polygon; give one"),
    ({"image": "a0", "expression": "x", "polygon": [1, 2, 3, 4]}, "polygon must have three corners"),
    ({"image": "a0", "expression": "x", "polygon": {"x": 1}}, "polygon must be a list of coordinates"),
    ({"image": "a0", "expression": "x", "polygon": [1e9, 2, 3, 4, 5, 6]}, "far outside the image of 32 x 24"),
    ({"image": "a0", "expression": "x", "polygon": [40, 40, 50, 40, 50, 50]}, "polygon covers no pixel"),
    ({"image": "a0", "expression": "x", "rle": {"size": [WIDTH, HEIGHT], "counts": [768]}}, "rle has the size"),
    ({"image": "a0", "expression": "x", "rle": {"size": [HEIGHT, WIDTH], "counts": "04"}}, "do not add up"),
    ({"image": "a0", "expression": "x", "rle": {"size": [HEIGHT, WIDTH], "counts": "0`"}}, "cut short"),
    ({"image": "small", "expression": "x", "mask": "a0"}, "has 32 x 24 pixels, but .* has 8 x 8"),
    ({"image": "text", "expression": "x", "mask": "a0"}, "text.jpg cannot be decoded as an image"),
    ({"image": "cut", "expression": "x", "mask": "a0"}, "cut.jpg cannot be decoded as an image"),
    ({"image": "alone", "expression": "x", "mask": "a0"}, "infrared has no picture 'alone.jpg'"),
    ({"image": "twice", "expression": "x", "mask": "a0"}, "several pictures of this name: twice.jpg, twice.png"),
])
def test_a_mistake_in_an_entry_is_reported_with_its_number(folder, entry, reason):
    visible = folder / "visible"
    Image.new("RGB", (8, 8)).save(visible / "small.jpg")
    (visible / "text.jpg").write_text("not an image")
    (visible / "cut.jpg").write_bytes((visible / "a0.jpg").read_bytes()[:300])
    for name in ("alone.jpg", "twice.jpg", "twice.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(visible / name)
    for name in ("small", "text", "cut", "twice"):
        Image.new("L", (WIDTH, HEIGHT)).save(folder / "infrared" / f"{name}.png")
    message = mistakes_of(write_json(folder, {"image": "a1", "expression": "fine"}, entry))
    assert re.search(f"table.json, entry 2: .*{reason}.*; nothing was written$", message), message


def test_all_mistakes_are_reported_at_once_up_to_twenty(folder):
    table = write_csv(folder, *[(f"b{number}", "x") for number in range(30)])
    message = mistakes_of(table)
    assert message.startswith("30 mistakes; nothing was written") and "line 21" in message
    assert "line 22" not in message and message.endswith("and 10 more")


@pytest.mark.parametrize("name, content, reason", [
    ("table.csv", b"file,text\na0,x\n", "has no column image; its first line is file, text"),
    ("table.csv", b"image,expression\n", "there are no entries"),
    ("table.csv", b"", "has no column image; its first line is empty"),
    ("table.csv", b"\0", "is not UTF-16 text"),
    ("table.csv", b"image,expression\na0,caf\xe9\n", "is not UTF-8"),
    ("table.csv", b'image,expression\na0,"open\n', "is not a table"),
    ("table.json", b'{"image": "a0"}', "must hold a list"),
    ("table.json", b'[{"image": ', "is not JSON"),
    ("table.jsonl", b'{"image": "a0", "expression": "x"}\n{"image"\n', "line 2: is not JSON"),
    ("table.xlsx", b"PK", "must be one of .csv"),
])
def test_a_table_that_cannot_be_used_is_refused(folder, name, content, reason):
    (folder / name).write_bytes(content)
    assert reason in mistakes_of(folder / name)


def test_what_looks_odd_is_built_and_said(folder, capsys):
    Image.new("L", (8, 8)).save(folder / "infrared" / "a0.png")
    Image.fromarray(box(0) * 0).save(folder / "masks" / "a1.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "visible" / "a2.jpg", exif=turned)
    assert len(build(write_csv(folder, ("a0", "x"), ("a1", "y"), ("a2", "z")))) == 3
    said = capsys.readouterr().out
    assert "another size than the visible one: " in said and "the mask is empty: " in said
    assert "line 3" in said and "EXIF" in said


def encoded_mask(kind):
    """The mask of the box as annotation tools write it."""
    mask = box(2) // 255
    if kind == "alpha":
        return Image.fromarray(np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), mask * 255]))
    if kind == "palette":
        palette = Image.fromarray(mask, "P")
        palette.putpalette([70, 130, 180, 220, 20, 60] + [0] * 762)
        return palette
    if kind == "colours":
        return Image.fromarray(mask[..., None] * np.array([0, 64, 128], np.uint8))
    bordered = mask.copy()
    bordered[2:14, 3:14][mask[2:14, 3:14] == 0] = 255
    return Image.fromarray(bordered)


@pytest.mark.parametrize("kind", ["alpha", "palette", "colours", "border", "border.npy"])
def test_masks_of_annotation_tools_give_the_object(folder, kind, capsys):
    path = folder / "masks" / f"b.{'npy' if kind.endswith('npy') else 'png'}"
    if kind.endswith("npy"):
        np.save(path, np.asarray(encoded_mask("border")))
    else:
        encoded_mask(kind).save(path)
    row = build(write_csv(folder, ("a2", "it", path.name), header=("image", "expression", "mask")))[0]
    np.testing.assert_array_equal(mask_of(row), box(2) > 0)
    said = capsys.readouterr().out
    assert ("a border, which is not counted" in said) == ("border" in kind)
    assert ("its alpha channel is the mask" in said) == (kind == "alpha")


def test_a_mask_of_the_whole_picture_and_one_picture_twice_are_pointed_out(folder, capsys):
    Image.new("L", (WIDTH, HEIGHT), 255).save(folder / "masks" / "a0.png")
    (folder / "infrared" / "a1.png").write_bytes((folder / "visible" / "a1.jpg").read_bytes())
    (folder / "infrared" / "a2.png").write_bytes((folder / "visible" / "a3.jpg").read_bytes())
    assert len(build(write_csv(folder, ("a0", "x"), ("a1", "y"), ("a2", "z")))) == 3
    said = capsys.readouterr().out
    assert "note: the mask covers the whole image: " in said and "line 2" in said
    assert "are the same picture" in said and "a1.png" in said
    assert "in false colours" in said and "a2.png" in said


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n"])
def test_tables_of_spreadsheets_are_read_whatever_separates_their_cells(folder, separator, encoding, first):
    lines = [separator.join(cells) for cells in (("image", "expression", "notes"), ("a1", '"links, oben; ß"', ""))]
    (folder / "table.csv").write_bytes((first.format(separator) + "\r\n".join(lines)).encode(encoding))
    rows = build(folder / "table.csv")
    assert [row["question"] for row in rows] == ["links, oben; ß"]


def coco_file(**changes):
    corners = [5, 4, 12, 4, 12, 12, 5, 12]
    return {"images": [{"id": 7, "file_name": "a2.jpg"}], "categories": [{"id": 1, "name": "box"}], "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "caption": "the small box", "segmentation": [corners]},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": coco_rle()} | changes]}


def coco_rle():
    rle = coco.encode(np.asfortranarray(box(2) // 255))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def test_annotations_of_coco_are_read(folder, capsys):
    (folder / "table.json").write_text(json.dumps(coco_file()))
    rows = build(folder / "table.json")
    assert [row["question"] for row in rows] == ["the small box", "box"]
    for row in rows:
        np.testing.assert_array_equal(mask_of(row), box(2) > 0)
    said = capsys.readouterr().out
    assert "no more than the name of a category or label for 1 object" in said and "annotation 2" in said


@pytest.mark.parametrize("changes, reason", [
    ({"image_id": 8}, "has the image_id 8, which no image has"), ({"image_id": [7]}, "has the image_id"),
    ({"category_id": 9}, "expression is missing"), ({"segmentation": []}, "has no segmentation")])
def test_a_mistake_in_annotations_of_coco_is_reported_with_its_number(folder, changes, reason):
    (folder / "table.json").write_text(json.dumps(coco_file(**changes)))
    assert f"table.json, annotation 2: {reason}" in mistakes_of(folder / "table.json")


def test_a_folder_of_labelme_is_read(folder):
    (folder / "labels").mkdir()
    shapes = [{"label": "box", "description": "the small box", "shape_type": "rectangle", "points": [[5, 4], [12, 12]]},
              {"label": "thing", "shape_type": "polygon", "points": [[5, 4], [12, 4], [12, 12], [5, 12]]}]
    (folder / "labels" / "a2.json").write_text(json.dumps({"imagePath": "..\\visible\\a2.jpg", "shapes": shapes}))
    build_parquet.main([str(folder / "labels"), "--out", str(folder / "out.parquet")])
    rows = pq.read_table(folder / "out.parquet").to_pylist()
    assert [(row["image_name"], row["question"]) for row in rows] == [("a2.jpg", "the small box"), ("a2.jpg", "thing")]
    for row in rows:
        np.testing.assert_array_equal(mask_of(row), box(2) > 0)
    shapes[1]["shape_type"] = "circle"
    (folder / "labels" / "a2.json").write_text(json.dumps({"imagePath": "a2.jpg", "shapes": shapes}))
    with pytest.raises(InputError, match="a2.json, shape 2: is a circle; only polygons"):
        build_parquet.main([str(folder / "labels"), "--out", str(folder / "out.parquet"), "--overwrite"])


def test_names_match_as_in_prediction(folder):
    for kind, old, new in (("visible", "a2.jpg", "train/F_2_RGB.jpg"), ("infrared", "a2.png", "train/F_2_IR.png"),
                           ("masks", "a2.png", "train/F_2_mask.png")):
        (folder / kind / "train").mkdir()
        (folder / kind / old).rename(folder / kind / new)
    rows = build(write_csv(folder, ("f_2_rgb", "x"), ("train/F_2_RGB.jpg", "y"), ("A1.JPG", "z")))
    assert [row["image_name"] for row in rows] == ["train/F_2_RGB.jpg", "train/F_2_RGB.jpg", "a1.jpg"]
    np.testing.assert_array_equal(mask_of(rows[0]), box(2) > 0)
    (folder / "infrared" / "train" / "F_2_thermal.png").write_bytes(rows[0]["infrared_image"])
    (folder / "out.parquet").unlink()
    message = mistakes_of(write_csv(folder, ("f_2_rgb", "x")))
    assert "unclear which of these belong together" in message and "F_2_IR.png, train/F_2_thermal.png" in message


def test_polygons_and_run_lengths_that_would_crash_or_never_end_are_refused():
    corners = [[0, 0], [2 * 10**7, 0], [0, 1]] * 3
    with pytest.raises(ValueError, match="too long for an image of 2000000 x 1"):
        mask_from_polygon(corners, 1, 2_000_000)
    with pytest.raises(ValueError, match="far outside the image"):
        mask_from_polygon([[0, 0], [10, 2 * 10**7], [20, 0]], 1, 2_000_000)
    assert mask_from_polygon([0, 0, 2_000_000, 0, 2_000_000, 1, 0, 1], 1, 2_000_000).all()
    with pytest.raises(ValueError, match="count that is too large"):
        mask_from_rle({"size": [HEIGHT, WIDTH], "counts": "o" * 2**20}, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="hundreds of digits"):
        mask_from_polygon([10**400, 2, 3, 4, 5, 6], HEIGHT, WIDTH)


@pytest.mark.parametrize("text, reason", [
    ('[{"image": "a0", "expression": "half \\ud83d"}]', r"entry 1: expression is 'half \\ud83d', which holds half"),
    ('[{"image": "a0", "expression": "x", "polygon": [' + "1" * 400 + ", 2, 3, 4, 5, 6]}]", "hundreds of digits"),
    ('[{"image": "a0", "expression": "x", "rle": {"size": [24, 32], "counts": [' + "1" * 400 + "]}}]", "add up"),
    ('[{"image": "a0", "expression": "x", "polygon": [' + "1" * 5000 + "]}]", "is not JSON"),
    ("[" * 10**5, "is not JSON"),
    ('[{"image": "a0", "expression": "x", "mask": "\\u001b[31m"}]', r"masks has no picture '\\x1b\[31m'")])
def test_odd_numbers_and_characters_in_json_are_mistakes(folder, text, reason):
    (folder / "table.json").write_text(text)
    assert re.search(reason, mistakes_of(folder / "table.json"))


def test_a_file_name_that_is_no_text_does_no_harm(folder, capsys):
    os.rename(folder / "visible" / "a0.jpg", os.fsencode(folder / "visible") + b"/caf\xe9\x1b[31m.jpg")
    assert len(build(write_csv(folder, *[(f"a{number}", "x") for number in range(1, 6)]))) == 5
    assert r"the first is caf\udce9\x1b[31m.jpg" in capsys.readouterr().out


def test_an_output_that_is_an_input_is_refused(folder):
    table = write_csv(folder, ("a0", "x"))
    for out in (table, folder / "visible" / "a0.jpg", folder / "masks" / "a0.png"):
        before = out.read_bytes()
        with pytest.raises(UsageError, match="is also read, as"):
            build_parquet.main([str(table), "--out", str(out), "--overwrite"])
        assert out.read_bytes() == before


def test_pipes_among_the_pictures_are_not_waited_for(folder, named_pipe):
    named_pipe(folder / "visible" / "pipe.jpg")
    named_pipe(folder / "visible" / "a0.png")  # else one of two pictures of that name
    assert len(build(write_csv(folder, ("a0", "x")))) == 1


def test_an_earlier_file_stays_when_the_new_one_fails(folder):
    before = build(write_csv(folder, ("a0", "x")))
    table = write_json(folder, {"image": "a0", "expression": "x", "polygon": [1, 2]})
    with pytest.raises(InputError):
        build(table)
    assert pq.read_table(folder / "out.parquet").to_pylist() == before


@pytest.mark.parametrize("flags, reason", [
    (["no_table.csv", "--out", "x.parquet"], "no_table.csv: there is no such table"),
    (["table.csv", "--out", "nowhere/x.parquet"], "out: nowhere/x.parquet is not a file name in an existing folder"),
    (["table.csv", "--out", "x.parquet", "--split", "8,1,1"], "--out: with --split, give a folder"),
    (["table.csv", "--out", "x.parquet", "--visible", "nowhere"], "--visible: there is no folder"),
])
def test_a_command_that_cannot_work_is_refused(folder, monkeypatch, flags, reason):
    write_csv(folder, ("a0", "x"))
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=reason):
        build_parquet.main(flags)


def test_as_a_script_a_mistake_is_a_sentence_and_exit_code_1(folder):
    table = write_csv(folder, ("lost", "x"))
    done = subprocess.run([sys.executable, str(SCRIPT), str(table), "--out", str(folder / "x.parquet")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {table}, line 2: ")
