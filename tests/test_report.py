"""report.html opens anywhere and shows any text as text."""
import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.report import histogram, pick_samples, sample_entry, sentences_entry, write_report
from utils.color import standardise

METRICS = {
    "mIoU": 50.0, "oIoU": 40.0, "F1": 60.0, "precision@0.5": 51.0, "precision@0.9": 1.0, "num_samples": 9,
    "intervals_95": {"mIoU": [45.0, 55.0], "oIoU": [30.0, 50.0], "precision@0.5": [40.0, 60.0],
                     "precision@0.9": [0.0, 3.0]},
    "bootstrap": {"resamples": 2000, "images": 5, "seed": 0},
    "settings": {"ckpt": "a.pth", "test_parquet": "<b>.parquet", "img_size": 480, "shuffle_text": False,
                 "device": "cpu", "torch": "2.15.0"},
    "bad_rows": {"count": 0, "messages": []}}
NASTY = "<script>alert('&')</script> \"the\" 红色的车 \ud800"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def addresses(self) -> list[str]:
        return [attributes[name] for _, attributes in self.tags for name in ("src", "href", "srcset", "data", "poster")
                if name in attributes]


@pytest.fixture
def page(tmp_path):
    def write(metrics=METRICS, sentence="the car"):
        pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 60, 120, 180, 240)]
        shown = [sample_entry(sentence, 0.5, 3, "<name>", pictures, (100, 50))]
        write_report(str(tmp_path / "report.html"), metrics, np.linspace(0, 1, 9), {"best": shown, "worst": shown})
        return Page(tmp_path / "report.html")
    return write


def test_nothing_is_fetched(page):
    found = page()
    assert len(found.addresses()) == 10
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses())
    assert not {"script", "link", "iframe"} & {tag for tag, _ in found.tags}


def test_pictures_have_the_proportions_of_the_original(page):
    sizes = {(attributes["width"], attributes["height"]) for tag, attributes in page().tags if tag == "img"}
    assert sizes == {("360", "180")}


def test_text_from_the_data_is_only_text(page):
    found = page(METRICS | {"bad_rows": {"count": 1, "messages": ["<i>row 3</i>"]}}, NASTY)
    assert "<script>alert('&')</script> \"the\" 红色的车" in found.text
    assert "<name>" in found.text and "<b>.parquet" in found.text and "<i>row 3</i>" in found.text
    assert not {"script", "i", "name"} & {tag for tag, attributes in found.tags if "style" not in attributes}


def test_the_page_says_what_was_measured_with_what(page):
    text = " ".join(page().text.split())
    assert "a.pth at 480 px · PyTorch 2.15.0, cpu" in text
    assert "shuffle_textFalse" in text  # a term and its value


def test_every_iou_is_in_percent(page):
    text = " ".join(page().text.split())
    assert "IoU 50.0 % · <name>" in text and "IoU, %" in text
    assert "Median 50.0 %; 1 of 9 below 5 %." in text and "0 to 5 %: 1" in text and "95 to 100 %: 1" in text


def test_an_endless_sentence_is_cut(page):
    found = page(sentence="word " * 2000)
    assert len(found.text) < 8000 and "word…" in found.text.replace(" …", "…")


def test_tables_are_there_when_asked_for(page):
    assert "Fusion quality" not in page().text and "steer" not in page().text
    text = page(METRICS | {
        "fusion_metrics": {name: {"EN": 6.5, "VIF": None} for name in ("fused", "average", "maximum")},
        "text_ablation": {name: {"mIoU": 7.25, "oIoU": 7.5, "change_inside": None, "change_outside": 0.125}
                          for name in ("true", "swapped", "empty")},
        "text_contrast": {"true": 21.5, "swapped": 9.25, "empty": None, "own_larger": 87.5, "num_samples": 8,
                          "intervals_95": {"true": [18.0, 25.0], "own_larger": [62.5, 100.0]}}}).text
    assert "Fusion quality" in text and "6.500" in text and "–" in text
    assert "Does the text steer the fusion?" in text and "7.25" in text
    text = " ".join(text.split())
    assert "21.5018.00 to 25.00" in text  # two cells
    assert "in 87.5 % (62.5 to 100.0) of 8 samples" in text


@pytest.mark.parametrize(("levels", "factor", "shown"), [(2, 64, 128), (0, 64, 0), (20, 8, 160), (200, 1, 200)])
def test_the_difference_that_another_sentence_makes_is_amplified_as_its_title_says(tmp_path, levels, factor, shown):
    fused, other = (standardise(torch.full((3, 8, 8), level / 255)) for level in (10, 10 + levels))
    entry = sentences_entry("the <car>", NASTY, fused, other, (100, 50))
    assert [title for title, *_ in entry["pictures"]] == ["own sentence", "other sentence", f"difference × {factor}"]
    picture = Image.open(io.BytesIO(base64.b64decode(entry["pictures"][2][3].split(",")[1])))
    assert np.abs(np.asarray(picture).astype(int) - shown).max() <= 1  # JPEG
    write_report(str(tmp_path / "report.html"), METRICS, np.linspace(0, 1, 9), {}, pairs=[entry])
    found = Page(tmp_path / "report.html")
    assert "the <car>" in found.text and "<script>alert" in found.text and f"difference × {factor}" in found.text
    assert len(found.addresses()) == 3 and "script" not in {tag for tag, _ in found.tags}


def test_intervals_are_shown(page):
    text = " ".join(page().text.split())
    assert "45.00 to 55.00" in text and "2000 bootstrap resamples" in text and "5 images" in text


@pytest.mark.parametrize(("count", "sizes"), [
    (1, {"best": 1}), (2, {"best": 1, "worst": 1}), (3, {"best": 1, "median": 1, "worst": 1}),
    (5, {"best": 1, "median": 1, "worst": 1}), (9, {"best": 3, "median": 3, "worst": 3}),
    (100, {"best": 3, "median": 3, "worst": 3})])
def test_best_median_and_worst_samples_are_picked(count, sizes):
    iou, rows = np.random.default_rng(0).permutation(count) / 100, np.arange(10, 10 + count)
    picked = pick_samples(iou, rows)
    assert {kind: len(chosen) for kind, chosen in picked.items()} == sizes
    chosen = [row for kind in picked.values() for row in kind]
    assert len(set(chosen)) == len(chosen)
    values = [iou[row - 10] for row in chosen]
    assert values == sorted(values, reverse=True)
    assert values[0] == iou.max()
    if count > 1:
        assert values[-1] == iou.min()
    if count >= 9:
        assert iou[picked["median"][1] - 10] == pytest.approx(np.median(iou), abs=0.01)


def test_the_histogram_counts_every_sample_once():
    bins = histogram(np.array([0.0, 0.04, 0.05, 0.5, 1.0]))
    assert sum(count for *_, count in bins) == 5
    assert (bins[0][2], bins[1][2], bins[-1][2]) == (2, 1, 1)
