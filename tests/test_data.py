"""Reading MM-RIS parquet: what a sample holds, and that it is exact."""
import io
import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rows import encode, make_row, npy, same_sample, tiny_tokenizer, write
from torch.utils.data import DataLoader

from data import MMRISDataset, collate
from data.parquet_rows import ParquetRows, ReadLimits
from utils.color import destandardise
from utils.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("width, height", [(31, 57), (101, 48), (64, 64), (48, 48)])
@pytest.mark.parametrize("kind, mode", [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"),
                                        ("JPEG", "L")])
def test_images_are_what_pillow_makes_of_them(tmp_path, tokenizer, kind, mode, width, height):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    encoded = encode(pixels if mode == "RGBA" else pixels[..., :3].copy(), kind, mode)
    path = write(tmp_path / "a.parquet", [make_row(0) | {"visible_image": encoded, "infrared_image": encoded}])
    expected = Image.open(io.BytesIO(encoded)).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    for exact, most in ((True, 0.001), (False, 1.001)):
        sample = MMRISDataset(path, tokenizer, img_size=48, exact=exact)[0]
        for image in (sample["vis"], sample["ir"]):
            assert image.shape == (3, 48, 48) and image.dtype == torch.float32
            pixels = (destandardise(image) * 255).permute(1, 2, 0).numpy()
            difference = pixels - np.asarray(expected)
            assert np.abs(difference).max() < most and abs(difference.mean()) < 0.02


def test_images_are_standardised_with_the_imagenet_statistics(tmp_path, tokenizer):
    grey = encode(np.full((8, 8, 3), 51, np.uint8))
    path = write(tmp_path / "a.parquet", [make_row(0) | {"visible_image": grey}])
    vis = MMRISDataset(path, tokenizer, 40)[0]["vis"]
    expected = [(0.2 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert torch.allclose(vis[:, 3, 5], torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_mask_keeps_its_pixels_and_is_resized_by_the_nearest(tmp_path, tokenizer, dtype):
    mask = np.random.default_rng(2).integers(0, 3, (33, 71)).astype(dtype)
    path = write(tmp_path / "a.parquet", [make_row(0, 71, 33) | {"segmentation": npy(mask)}])
    sample = MMRISDataset(path, tokenizer, 40, originals=True)[0]
    truth = (mask > 0).astype(np.uint8)
    assert sample["mask"].dtype == np.uint8 and np.array_equal(sample["mask"], truth)
    assert sample["size"] == (71, 33)
    nearest = np.asarray(Image.fromarray(truth).resize((40, 40), Image.Resampling.NEAREST))
    assert sample["target"].dtype == torch.int64 and np.array_equal(sample["target"], nearest)
    # Pixel centres: the same by hand.
    rows, columns = ((np.arange(40) + 0.5) * side / 40 for side in mask.shape)
    assert np.array_equal(nearest, truth[rows.astype(int)][:, columns.astype(int)])


def test_negative_numbers_are_background(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(0) | {"segmentation": npy(np.array([[-1, 0], [1, 2]], np.int32))}])
    assert MMRISDataset(path, tokenizer, 40, originals=True)[0]["mask"].tolist() == [[0, 0], [1, 1]]


def test_token_ids_are_the_tokenizers(tmp_path, tokenizer):
    rows = [make_row(0), make_row(1) | {"question": "the hot red disc on the left " * 5}]
    dataset = MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40)
    for row, sentence in enumerate(dataset.questions):
        input_ids, attention_mask = tokenizer([sentence])
        assert torch.equal(dataset[row]["input_ids"], input_ids[0])
        assert torch.equal(dataset[row]["attention_mask"], attention_mask[0])
    assert dataset[1]["attention_mask"].sum() == 20


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path, tokenizer):
    rows = [make_row(i) for i in range(7)]
    write(tmp_path / "b.parquet", rows[3:])
    write(tmp_path / "a.parquet", rows[:3])
    (tmp_path / "notes.txt").write_text("not a part")
    dataset = MMRISDataset(str(tmp_path), tokenizer, 40)
    one_file = MMRISDataset(write(tmp_path / "whole", rows), tokenizer, 40)
    assert len(dataset) == 7 and dataset.indices == [100 + i for i in range(7)]
    assert dataset.names == [f"{i}.png" for i in range(7)]
    assert dataset.questions == [row["question"] for row in rows]
    for row in range(7):
        same_sample(dataset[row], one_file[row])


def test_rows_number_the_samples_when_there_is_no_index(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(3)], index=None)
    assert MMRISDataset(path, tokenizer, 40).indices == [0, 1, 2]
    assert not caplog.records


@pytest.mark.parametrize("index, word", [
    ([5, 5, 6], "same number"), ([5, None, 6], "empty"), (["a", "b", "c"], "whole")])
def test_an_index_that_does_not_serve_is_replaced_by_row_numbers_with_a_warning(
        tmp_path, tokenizer, caplog, index, word):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(3)], index=pa.array(index))
    assert MMRISDataset(path, tokenizer, 40).indices == [0, 1, 2]
    assert word in caplog.text and path in caplog.text


@pytest.fixture(params=["small row groups", "row groups that are kept", "one large row group"])
def layout(request):
    """Rows per group, and limits under which they are read in this way."""
    return {"small row groups": (4, ReadLimits()), "row groups that are kept": (4, ReadLimits(2, 1)),
            "one large row group": (1000, ReadLimits(2, 1, 20_000))}[request.param]


def test_samples_do_not_depend_on_row_groups_or_the_order_of_reading(tmp_path, tokenizer, layout):
    rows = [make_row(i) for i in range(11)]
    expected = [MMRISDataset(write(tmp_path / "one.parquet", [row]), tokenizer, 40)[0] for row in rows]
    rows_per_group, limits = layout
    write(tmp_path / "parts_1.parquet", rows[:6], rows_per_group)
    write(tmp_path / "parts_2.parquet", rows[6:], rows_per_group)
    (tmp_path / "one.parquet").unlink()
    dataset = MMRISDataset(str(tmp_path), tokenizer, 40, limits=limits)
    for row in [*range(11), 10, 3, 9, 0, 5, 5, 4, 6, 2, 10, *range(10, -1, -1)]:
        sample = dataset[row]
        assert sample["row"] == row
        same_sample(sample | {"row": 0}, expected[row])


@pytest.mark.parametrize("workers, start", [(0, None), (2, "fork"), (2, "spawn")])
def test_loading_by_several_processes_gives_the_same_batches(tmp_path, tokenizer, layout, workers, start):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(9)], layout[0])
    dataset = MMRISDataset(path, tokenizer, 40, limits=layout[1])
    expected = [dataset[row] for row in range(9)]  # also leaves files open in this process
    order = [4, 2, 8, 0, 1, 7, 3, 6, 5]  # none that `epoch_order` would give
    loader = DataLoader(dataset, batch_size=3, sampler=order, num_workers=workers, collate_fn=collate,
                        multiprocessing_context=start)
    assert [row for batch in loader for row in batch["row"].tolist()] == order
    for batch in loader:
        for place, row in enumerate(batch["row"].tolist()):
            for key in ("vis", "ir", "target", "input_ids", "attention_mask"):
                assert torch.equal(batch[key][place], expected[row][key])


def test_a_pickled_data_set_reads_on(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(3)]), tokenizer, 40)
    first = dataset[1]
    same_sample(pickle.loads(pickle.dumps(dataset))[1], first)


def test_what_is_kept_of_a_file_is_bounded(tmp_path):
    rows = [make_row(i) | {"visible_image": bytes(1000)} for i in range(40)]
    path = write(tmp_path / "a.parquet", rows)
    for few, kept in ((16, 1), (2, 4)):  # groups of 4 rows: small ones are not kept
        reader = ParquetRows([path], ["visible_image"], ReadLimits(few, 1, 10_000))
        for row in range(40):
            reader.read(row)
            assert len(reader._cache) <= kept
        assert len(reader._cache) == kept


def test_batches_asked_for_at_once_are_those_of_single_samples(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(5)]), tokenizer, 40)
    at_once, one_by_one = collate(dataset.__getitems__([3, 0, 4])), collate([dataset[3], dataset[0], dataset[4]])
    assert at_once.keys() == one_by_one.keys()
    for key, value in at_once.items():
        assert torch.equal(value, one_by_one[key]) if isinstance(value, torch.Tensor) else value == one_by_one[key]


def test_samples_keep_their_pixels_while_others_are_read(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(3)]), tokenizer, 40, True)
    first = dataset[0]
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in first.items()}
    mask = first["mask"].copy()
    dataset[1], dataset[2]
    assert np.array_equal(first.pop("mask"), mask) and before.pop("mask") is not None
    same_sample(first, before)


def test_without_masks_no_segmentation_is_needed(tmp_path, tokenizer):
    rows = [make_row(i) for i in range(3)]
    with_masks = MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40)
    for row in rows:
        del row["segmentation"]
    dataset = MMRISDataset(write(tmp_path / "b.parquet", rows), tokenizer, 40, originals=True, masks=False)
    sample = dataset[1]
    assert sample.keys() == {"vis", "ir", "input_ids", "attention_mask", "row", "size"} and sample["size"] == (53, 37)
    assert torch.equal(sample["vis"], with_masks[1]["vis"]) and torch.equal(sample["ir"], with_masks[1]["ir"])
    assert "target" not in collate([dataset[0], dataset[2]])


def test_texts_and_indices_behave_like_lists(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(i) for i in range(5)]), tokenizer, 40)
    assert len(dataset.names) == 5 and dataset.names[1] == dataset.names[np.int64(1)] == "1.png"
    assert dataset.names[-1] == "4.png" and dataset.names[1:3] == ["1.png", "2.png"] and "3.png" in dataset.names
    assert json.dumps(dataset.indices[2:]) == "[102, 103, 104]" and list(reversed(dataset.indices))[0] == 104
    assert pd.DataFrame({"index": dataset.indices, "question": dataset.questions})["index"].tolist() == [
        100, 101, 102, 103, 104]
    with pytest.raises(IndexError):
        dataset.names[5]


def test_collate_stacks_tensors_and_lists_the_rest(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(0, 20, 10), make_row(1, 30, 15)])
    dataset = MMRISDataset(path, tokenizer, 40, originals=True)
    batch = collate([dataset[1], dataset[0]])
    assert {key: tuple(batch[key].shape) for key in ("vis", "ir", "target", "input_ids", "attention_mask", "row")} == {
        "vis": (2, 3, 40, 40), "ir": (2, 3, 40, 40), "target": (2, 40, 40),
        "input_ids": (2, 20), "attention_mask": (2, 20), "row": (2,)}
    assert batch["row"].dtype == torch.int64 and batch["row"].tolist() == [1, 0]
    assert [mask.shape for mask in batch["mask"]] == [(15, 30), (10, 20)]
    assert batch["size"] == [(30, 15), (20, 10)]
    assert "mask" not in MMRISDataset(path, tokenizer, 40)[0]


# Swapping sentences


@pytest.mark.parametrize("count", [2, 3, 10, 41])
def test_swapped_sentences_leave_no_sample_with_its_own(tmp_path, tokenizer, count):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(count)])
    dataset = MMRISDataset(path, tokenizer, 40)
    before = list(dataset.questions)
    dataset.shuffle_text(7)
    assert sorted(dataset.questions) == sorted(before)
    assert all(now != then for now, then in zip(dataset.questions, before, strict=True))
    input_ids, attention_mask = tokenizer(dataset.questions)
    assert torch.equal(dataset.input_ids.long(), input_ids)
    assert torch.equal(dataset.attention_mask.long(), attention_mask)
    assert torch.equal(dataset[1]["input_ids"], input_ids[1])
    assert dataset.names == [f"{i}.png" for i in range(count)] and dataset.indices[0] == 100


def test_swapping_is_decided_by_its_seed(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) for i in range(20)])
    results = []
    for seed in (1, 1, 2):
        dataset = MMRISDataset(path, tokenizer, 40)
        dataset.shuffle_text(seed)
        results.append(dataset.questions)
    assert results[0] == results[1] != results[2]


def test_swapping_prefers_other_words(tmp_path, tokenizer):
    texts = ["a man"] * 10 + ["the cold square"] * 6 + ["the blue one"] * 4
    path = write(tmp_path / "a.parquet", [make_row(i) | {"question": text} for i, text in enumerate(texts)])
    for seed in range(20):
        dataset = MMRISDataset(path, tokenizer, 40)
        dataset.shuffle_text(seed)
        assert all(now != then for now, then in zip(dataset.questions, texts, strict=True))


def test_swapping_equal_sentences_does_what_it_can(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [make_row(i) | {"question": "a man"} for i in range(3)])
    MMRISDataset(path, tokenizer, 40).shuffle_text(0)


def test_one_sentence_cannot_be_swapped(tmp_path, tokenizer):
    dataset = MMRISDataset(write(tmp_path / "a.parquet", [make_row(0)]), tokenizer, 40)
    with pytest.raises(InputError, match="at least two rows"):
        dataset.shuffle_text(0)
