"""Alignment: warping an infrared image by a matrix, and estimating one."""
import json

import cv2
import numpy as np
import pytest
from conftest import in_process
from PIL import Image

from data.homography import read_matrix, warp
from data.prepare.aligning import from_edges
from utils.errors import InputError

TRUE = np.array([[1.9, 0.05, 8], [-0.04, 2.1, 5], [1e-5, -2e-5, 1]])  # from 150×110 to 320×240 pixels


def scene(size=(320, 240), seed=0) -> np.ndarray:
    """A picture with contours, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), 40, np.uint8)
    for _ in range(25):
        x, y, radius = (int(value) for value in rng.integers((0, 0, 8), (*size, 40)))
        cv2.circle(picture, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1)
    return cv2.GaussianBlur(picture, (5, 5), 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with visible.png, and infrared.png of another view, which TRUE maps to the visible one."""
    folder = tmp_path_factory.mktemp("pair")
    visible = scene()
    infrared = cv2.warpPerspective(visible, np.linalg.inv(TRUE), (150, 110), borderMode=cv2.BORDER_REPLICATE)
    Image.fromarray(visible).save(folder / "visible.png")
    Image.fromarray(infrared).convert("L").save(folder / "infrared.png")
    return folder


def write(path, content):
    path.write_text(content)
    return str(path)


def placed(matrix) -> np.ndarray:
    """Where points in the infrared image of `pair` come to lie."""
    points = np.array([[[20.0, 20], [130, 15], [75, 55], [20, 95], [125, 90]]])
    return cv2.perspectiveTransform(points, np.asarray(matrix, np.float64))


def test_a_shifted_image_is_brought_back_and_the_rest_filled_with_the_visible_luma():
    visible = scene()
    infrared = visible[30:, 20:]  # its pixel (0, 0) is (20, 30) of the visible image
    found = warp(infrared, np.array([[1.0, 0, 20], [0, 1, 30], [0, 0, 1]]), visible)
    assert np.array_equal(found.pixels[30:, 20:], infrared)
    luma = np.asarray(Image.fromarray(visible).convert("L")).astype(int)
    assert np.abs(found.pixels[:30] - luma[:30, :, None]).max() <= 1
    assert np.abs(found.pixels[:, :20] - luma[:, :20, None]).max() <= 1
    assert found.covered == pytest.approx(300 * 210 / (320 * 240))


def test_a_multiple_of_a_matrix_is_the_same_and_the_image_keeps_its_brightness_up_to_its_edge():
    visible, bright = scene(), np.full((110, 150, 3), 200, np.uint8)
    found, negative = (warp(bright, factor * TRUE, visible) for factor in (1, -3))
    assert np.array_equal(found.pixels, negative.pixels) and found.covered == negative.covered
    covered = cv2.warpPerspective(np.ones((110, 150), np.uint8), TRUE, (320, 240), flags=cv2.INTER_NEAREST) > 0
    assert (found.pixels[covered] == 200).all()


@pytest.mark.parametrize(("name", "content"), [
    ("h.json", "[[1, 0, 5], [0, 2, 0], [0, 0, 1]]"), ("h.JSON", '{"matrix": [[1, 0, 5], [0, 2, 0], [0, 0, 1]]}'),
    ("h.csv", "1,0,5\n0,2,0\n0,0,1\n"), ("h.csv", "1; 0; 5\r\n0; 2; 0\r\n0; 0; 1"), ("h.txt", "1 0 5\n 0 2 0\n0 0 1")])
def test_a_matrix_is_read_from_each_kind_of_file(name, content, tmp_path):
    expected = [[1, 0, 5], [0, 2, 0], [0, 0, 1]]
    assert read_matrix(write(tmp_path / name, content)).tolist() == expected
    np.save(tmp_path / "h.npy", np.array(expected))
    assert read_matrix(str(tmp_path / "h.npy")).tolist() == expected


@pytest.mark.parametrize(("name", "content", "message"), [
    ("h.json", "[[1, 0], [0, 1]]", "an array of shape (2, 2), not 3×3 numbers"),
    ("h.json", "[[1, 0, 0], [0, 1, 0], [0, 0, NaN]]", "infinite or NaN"),
    ("h.json", "[[1, 2, 3], [2, 4, 6], [0, 0, 1]]", "a singular matrix"),
    ("h.json", "{}", "shape ()"), ("h.json", "a", "cannot be read as a matrix"),
    ("h.csv", "1,0,0\n0,a,0\n0,0,1", "cannot be read as a matrix"),
    ("h.csv", "1,0,0\n0,1\n0,0,1", "cannot be read as a matrix"), ("h.npy", "a", "cannot be read as a matrix")])
def test_what_is_no_matrix_is_refused(name, content, message, tmp_path):
    with pytest.raises(InputError) as caught:
        read_matrix(write(tmp_path / name, content))
    assert message in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(("matrix", "message"), [
    ([[1, 0, 5000], [0, 1, 0], [0, 0, 1]], "of which it covers 0 %"),
    ([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]], "to infinity"),
    ([[100, 0, 0], [0, 100, 0], [0, 0, 1]], "beyond all proportion"),
    ([[0.01, 0, 0], [0, 0.01, 0], [0, 0, 1]], "beside the visible one")])
def test_a_matrix_for_other_pictures_is_refused(matrix, message):
    picture = scene()
    with pytest.raises(InputError, match="alignment") as caught:
        warp(picture, np.array(matrix, float), picture)
    assert message in str(caught.value)


def test_points_give_the_matrix_although_one_is_a_mistake(pair, tmp_path):
    infrared = [(10, 12), (140, 8), (70, 50), (15, 100), (130, 95), (100, 30), (40, 70)]
    visible = cv2.perspectiveTransform(np.array([infrared], np.float64), TRUE)[0]
    lines = [f"{x:.3f}, {y:.3f}, {u}, {v}" for (x, y), (u, v) in zip(visible, infrared, strict=True)]
    points = write(tmp_path / "points.csv", "\n".join(["# visible, infrared", *lines, "10,10,140,100"]))
    said = in_process("data/align.py", pair / "visible.png", pair / "infrared.png", "--points", points, "--out",
                      tmp_path / "H.json").stdout
    assert "7 of 8 point pairs used, root mean square error 0.00 px" in said
    assert np.abs(placed(read_matrix(str(tmp_path / "H.json"))) - placed(TRUE)).max() < 0.1
    board = np.asarray(Image.open(tmp_path / "H-checkerboard.png"))
    same = (board == scene()).all(2)
    assert same[:40, :40].all() and not same[:40, 40:80].all()
    again = in_process("data/align.py", pair / "visible.png", pair / "infrared.png", "--points", points, "--out",
                       tmp_path / "H.json", ok=False)
    assert again.returncode == 2 and "is there already" in again.stderr


def test_edges_give_nearly_the_matrix(pair, tmp_path):
    in_process("data/align.py", pair / "visible.png", pair / "infrared.png", "--auto", "--out", tmp_path / "H.json")
    found = json.loads((tmp_path / "H.json").read_text())
    assert found["correlation"] > found["correlation_before"]
    assert np.abs(placed(found["matrix"]) - placed(TRUE)).max() < 2


def test_edges_that_hardly_agree_are_warned_of(caplog):
    from_edges(scene(), scene())
    assert not caplog.records
    from_edges(scene(), scene(seed=24))
    assert "the edges hardly agree (correlation 0.09)" in caplog.text


def test_edges_of_the_same_picture_at_another_size_fit_to_a_fraction_of_a_pixel():
    visible = scene((640, 480), seed=4)
    half = cv2.resize(visible, (320, 240), interpolation=cv2.INTER_AREA)
    found = cv2.perspectiveTransform(np.array([[[9.0, 9], [300, 9], [160, 120], [9, 220], [300, 220]]]),
                                     from_edges(visible, half).matrix)
    assert np.abs(found - (2 * np.array([[9.0, 9], [300, 9], [160, 120], [9, 220], [300, 220]]) + 0.5)).max() < 0.014


@pytest.mark.parametrize(("content", "message"), [
    ("1,2,3,4\n1,2,3", "line 2: must be four numbers"), ("1,2,3,4\n" * 3, "holds 3 point pairs; at least 4"),
    ("1,1,1,1\n2,2,2,2\n3,3,3,3\n4,4,4,4\n", "they must not be on a line"),
    ("5,9,1,7\n60,9,40,7\n90,9,80,7\n120,9,99,7\n", "they must not be on a line")])
def test_points_that_do_not_do_are_refused_and_nothing_written(content, message, pair, tmp_path):
    answer = in_process("data/align.py", pair / "visible.png", pair / "infrared.png", "--out", tmp_path / "H.json",
                        "--points", write(tmp_path / "p.csv", content), ok=False)
    assert answer.returncode == 1 and message in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_a_prediction_uses_the_warped_image_and_says_what_it_does_not_cover(pair, trained, tmp_path):
    matrix = write(tmp_path / "h.csv", "1.5,0,30\n0,1.5,20\n0,0,1")
    out = in_process("predict.py", "--ckpt", trained / "last.pth", "--visible", pair / "visible.png", "--infrared",
                     pair / "infrared.png", "--text", "the disc", "--align", matrix, "--out", tmp_path / "out",
                     "--device", "cpu", "--save", "panel")
    assert "% of the picture that it does not cover are filled with the visible image" in out.stdout
    assert "resampled" not in out.stdout
