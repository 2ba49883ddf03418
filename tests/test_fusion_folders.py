"""python -m evaluation.fusion: the fusion metrics of any method's pictures, from folders alone."""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import in_process, script
from parity import FIGURES
from PIL import Image
from test_fusion_metrics import lumas

from evaluation.fusion_metrics import NAMES, baselines

KNOWN = json.loads((FIGURES / "fusion_metrics.json").read_text())


def write(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Two pairs of known images with what two methods make of them; each folder names them in its own way."""
    for size in KNOWN:
        pair = lumas(*map(int, size.split("x")))
        write(tmp_path / "visible", f"{size}_vis.png", np.repeat(pair[0][..., None], 3, 2))
        write(tmp_path / "infrared", f"{size}_ir.bmp", pair[1])
        for method, image in baselines(*pair).items():
            write(tmp_path / method, f"{size}_fused.png", image)
    return tmp_path


def command(folder, *fused):
    return ["evaluation/fusion.py", *(fused or [folder / "average"]), "--visible", folder / "visible", "--infrared",
            folder / "infrared", "--out", folder / "out" / "metrics.csv", "-j", 0]


def values_of(folder):
    return pd.read_csv(folder / "out" / "metrics.csv").set_index(["method", "image"])


def test_known_images_have_known_values(folder):
    result = in_process(*command(folder, folder / "average", f"larger={folder / 'maximum'}"))
    table = values_of(folder)
    assert len(table) == 4
    for size, known in KNOWN.items():
        for method, of in (("average", "average"), ("larger", "maximum")):
            assert table.loc[method, f"{size}_vis"].to_dict() == pytest.approx(known[of], rel=1e-3)
    cells = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert cells["average"] == ["average", "larger"]
    for name in NAMES:
        mean = table.loc["average"][name].mean()
        assert cells[name][1] == f"{mean:.3f}"
        assert float(cells[name][2].strip("[,")) <= mean <= float(cells[name][3].strip("],"))
    assert "bootstrap resamples of 2 images" in result.stdout


def test_worker_processes_give_the_same_and_an_earlier_file_is_kept(folder):
    in_process(*command(folder))
    alone = (folder / "out" / "metrics.csv").read_bytes()
    script("-m", "evaluation.fusion", *command(folder)[1:-1], 1)
    assert (folder / "out" / "metrics.csv").read_bytes() == alone
    assert (folder / "out" / "earlier_run_1" / "metrics.csv").read_bytes() == alone


def test_methods_are_compared_on_the_images_that_all_of_them_have(folder):
    (folder / "maximum" / "75x61_fused.png").rename(folder / "maximum" / "other.png")
    result = in_process(*command(folder, folder / "average", folder / "maximum"))
    assert "maximum has no picture of 1 of the 2 pairs, left out: 75x61_vis" in result.stdout
    assert f"no pair of sources for 1 of the pictures of maximum, left out: {folder / 'maximum' / 'other.png'}" in (
        result.stdout)
    assert set(values_of(folder).index) == {("average", "96x128_vis"), ("maximum", "96x128_vis")}
    assert "95%" not in result.stdout, "there are no intervals of a single image"


def test_a_picture_that_cannot_be_used_is_left_out_of_all_methods_and_ends_with_code_1(folder):
    write(folder / "average", "75x61_fused.png", np.zeros((75, 60), np.uint8))
    result = in_process(*command(folder, folder / "average", folder / "maximum"), ok=False)
    assert result.returncode == 1
    assert f"{folder / 'average' / '75x61_fused.png'} is of 60×75 px, but" in result.stdout and "61×75" in result.stdout
    assert "1 of 2 images could not be measured" in result.stderr
    assert set(values_of(folder).index) == {("average", "96x128_vis"), ("maximum", "96x128_vis")}
    (folder / "maximum" / "96x128_fused.png").write_bytes(b"no picture")
    result = in_process(*command(folder, folder / "average", folder / "maximum"), ok=False)
    assert "96x128_fused.png cannot be decoded as an image" in result.stdout
    assert result.stderr == "error: no image could be measured; the reasons are above\n"


@pytest.mark.parametrize("change, message, code", [
    (lambda words, folder: [*words[:1], folder / "none", *words[2:]], "there is no folder", 2),
    (lambda words, folder: [*words[:2], folder / "average", *words[2:]], "two folders are called 'average'", 2),
    (lambda words, folder: [*words, "--visible", folder / "none"], "--visible: there is no folder", 2),
    (lambda words, folder: [*words, "--out", folder], "is a folder; name a file", 2),
    (lambda words, folder: [*words[:1], folder / "odd", *words[2:]], ", suffixes aside; there is ", 1),
    (lambda words, folder: [*words[:1], folder / "twice", *words[2:]], "share a name", 1)])
def test_what_cannot_be_done_is_one_sentence(folder, change, message, code):
    write(folder / "odd", "odd.png", np.zeros((4, 4), np.uint8))
    for suffix in ("png", "bmp"):
        write(folder / "twice", f"96x128.{suffix}", np.zeros((4, 4), np.uint8))
    result = in_process(*change(command(folder), folder), ok=False)
    assert result.returncode == code and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "out" / "metrics.csv").exists()
