"""People's own pictures: what cameras and programs export is read as it was meant, and folders are paired by name."""
import io
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data.decode import decode_image
from data.pairing import MASK_WORDS, VISIBLE_WORDS, match_names
from data.pictures import oddities_of_pair, orientation, pair_files, read_pair, read_picture, to_picture, upright
from utils.errors import InputError

HEIGHT, WIDTH = 24, 32


def colours(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def counts():
    """What a thermal camera counts: 16 bits, of which a small part of the range is used."""
    return (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 200 * 16 + 28000).astype(np.uint16)


def saved(folder, name, array, **options):
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, array)
    elif array.dtype == np.uint8:
        Image.fromarray(array).save(path, **options)
    else:
        assert cv2.imwrite(str(path), array)
    return str(path)


# Reading


@pytest.mark.parametrize("name", ["three.tiff", "three.png", "three.ppm", "one.tiff", "one.pgm", "one.npy"])
def test_thermal_counts_are_stretched_alike_however_they_are_stored(tmp_path, name):
    expected = read_picture(saved(tmp_path, "grey.png", counts()))
    array = cv2.merge([counts()] * 3) if name.startswith("three") else counts()
    path = saved(tmp_path, name, array)
    found = read_picture(path)
    assert np.array_equal(found.pixels, expected.pixels) and len(np.unique(found.pixels)) > 190
    assert "values from 28000 to 31184 scaled" in found.note
    assert found.note.split(" ", 1)[1] == expected.note.split(" ", 1)[1], "but for the type, which Pillow chooses"
    if not name.endswith(".npy"):
        assert np.array_equal(decode_image(Path(path).read_bytes()), expected.pixels), "in a data set too"


@pytest.mark.parametrize("name, values", [
    ("a.png", np.uint8), ("a.npy", np.uint8), ("a.tiff", np.uint16), ("a.npy", np.uint16)])
def test_a_file_of_four_channels_given_twice_holds_both_pictures(tmp_path, name, values):
    infrared = counts() if values == np.uint16 else colours(1)[..., 0]
    visible = colours().astype(values)
    path = saved(tmp_path, name, np.dstack([visible, infrared]))
    if name == "a.tiff":  # OpenCV takes the first channel for blue
        visible = visible[..., ::-1]
    first, second = read_pair(path, path)
    if values == np.uint8:
        assert np.array_equal(first.pixels, visible)
    assert np.array_equal(second.pixels, to_picture(infrared).pixels)
    assert "the infrared image its fourth" in second.note
    assert ("scaled to 8 bits" in second.note) == (values == np.uint16)
    assert not oddities_of_pair(first.pixels, second.pixels)
    copy = tmp_path / f"copy_{name}"  # as in a folder for each kind
    copy.write_bytes(Path(path).read_bytes())
    assert np.array_equal(read_pair(path, str(copy))[1].pixels, second.pixels)


def test_a_fourth_channel_that_says_nothing_is_no_infrared_image(tmp_path):
    opaque = saved(tmp_path, "a.png", np.dstack([colours(), np.full((HEIGHT, WIDTH), 255, np.uint8)]))
    first, second = read_pair(opaque, opaque)
    assert np.array_equal(second.pixels, colours()) and not second.note
    assert "the same picture" in oddities_of_pair(first.pixels, second.pixels)[0]


def test_the_same_pixels_and_false_colours_are_pointed_out(tmp_path):
    grey = colours()[..., :1].repeat(3, axis=2)
    pictures = [read_picture(saved(tmp_path, name, grey)).pixels for name in ("a.png", "b.bmp")]
    assert "the same picture" in oddities_of_pair(*pictures)[0]
    assert not oddities_of_pair(colours(1), grey) and not oddities_of_pair(grey[:5], grey)
    noisy = (grey.astype(int) + np.random.default_rng(0).integers(-8, 9, grey.shape)).clip(0, 255).astype(np.uint8)
    noisy[:2, :20] = (255, 0, 0)  # a logo
    assert not oddities_of_pair(colours(1), noisy)
    iron = cv2.applyColorMap(np.ascontiguousarray(grey[..., 0]), cv2.COLORMAP_INFERNO)
    assert "in false colours" in oddities_of_pair(colours(1), iron)[0]


@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, turned):
    image = Image.fromarray(colours())
    image.getexif()[0x0112] = turned
    assert np.array_equal(upright(colours(), turned), ImageOps.exif_transpose(image))
    image.save(tmp_path / "a.png", exif=image.getexif())
    assert np.array_equal(read_picture(str(tmp_path / "a.png")).pixels, upright(colours(), turned))
    assert np.array_equal(to_picture(Image.open(tmp_path / "a.png")).pixels, upright(colours(), turned))


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_does_not_exist_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(colours()).save(buffer := io.BytesIO(), "JPEG", exif=exif)
    assert orientation(buffer.getvalue()) == 1


def test_damaged_notes_do_not_keep_a_picture_from_being_read(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours()).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    start = content.index(b"Exif\0\0") + 6
    (tmp_path / "a.jpg").write_bytes(content[:start] + b"XX*\0\xff\xff\xff\xff" + content[start + 8:])
    assert read_picture(str(tmp_path / "a.jpg")).pixels.shape == (HEIGHT, WIDTH, 3)


def npy_header(shape):
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("content", [
    npy_header("(10000000, 10000000)") + bytes(9), npy_header("(-1, 4)") + bytes(8), npy_header("()") + bytes(2),
    npy_header("(0, 4)"), npy_header("(2, 2, 9)") + bytes(72), npy_header("(True, 2)") + bytes(8), npy_header("{}"),
    b"\x93NUMPY\x03", b"", b"text"])
def test_arrays_that_are_no_pictures_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"a.npy cannot be decoded as an image: [^\n]+$"):
        read_picture(str(tmp_path / "a.npy"))


def test_an_array_that_python_2_wrote_is_read_without_a_warning(tmp_path, recwarn):
    (tmp_path / "a.npy").write_bytes(npy_header("(2L, 2L)") + bytes(range(8)))
    assert read_picture(str(tmp_path / "a.npy")).pixels.shape == (2, 2, 3) and not recwarn.list


def test_an_array_of_objects_is_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[print]]), allow_pickle=True)
    with pytest.raises(InputError, match="holds a pickle, which is never opened"):
        read_picture(str(tmp_path / "a.npy"))


def test_a_picture_that_fails_while_it_is_decoded_is_a_value_error():
    buffer = io.BytesIO()
    Image.fromarray(colours()).save(buffer, "PNG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:-300]))
    with pytest.raises(ValueError, match="cannot be decoded"):
        to_picture(cut)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, named_pipe):
    named_pipe(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: it is no regular file"):
        read_picture(str(tmp_path / "a.png"))


def test_escape_sequences_in_names_are_not_printed(tmp_path):
    with pytest.raises(InputError) as caught:
        read_picture(str(tmp_path / "a\x1b[31m.png"))
    assert "\x1b" not in str(caught.value) and r"a\x1b[31m.png" in str(caught.value)


# Pairs of files


def folders(tmp_path, visible, infrared):
    for kind, names in (("v", visible), ("i", infrared)):
        (tmp_path / kind).mkdir()
        for name in names:
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return str(tmp_path / "v"), str(tmp_path / "i")


def names_of(pairs, tmp_path):
    return [tuple(os.path.relpath(path, tmp_path)[2:] for path in pair[1:]) for pair in pairs]


@pytest.mark.parametrize("visible, infrared", [
    (["FLIR_00002_RGB.jpg"], ["FLIR_00002_IR.jpg"]),
    (["FLIR_1_RGB.jpg", "FLIR_2_RGB.jpg"], ["FLIR_1_PreviewData.jpeg", "FLIR_2_PreviewData.jpeg"]),
    (["VIS_Bunker.bmp"], ["IR_Bunker.bmp"]),
    (["VIS18.png", "VIS19.png"], ["IR18.png", "IR19.png"]),
    (["DJI_0001_V.JPG", "DJI_0003_V.JPG"], ["DJI_0001_T.JPG", "DJI_0003_T.JPG"]),
    (["00000000_co.png"], ["00000000_ir.png"]),
    (["train/010001.jpg", "val/010001.jpg"], ["train/010001.jpg", "val/010001.jpg"]),
    (["set00/visible/I1.jpg", "set01/visible/I1.jpg"], ["set00/lwir/I1.jpg", "set01/lwir/I1.jpg"]),
    (["set00/visible/I1.jpg", "set01/visible/I1.jpg"], ["set00/I1.jpg", "set01/I1.jpg"]),
    (["Street.PNG"], ["street.png"]), (["7.ppm"], ["7.pgm"]), (["7.tif"], ["7.npy"]),
    (["Cafe\N{COMBINING ACUTE ACCENT}.png"], ["Caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"]),
    (["StreetView_RGB.png"], ["streetview_ir.png"]), (["rgb.png"], ["thermal.png"]),
    (["scene1/rgb.png", "scene2/rgb.png"], ["scene1/ir.png", "scene2/ir.png"]),
    (["A.png", "a.png"], ["A.png", "a.png"])])
def test_folders_are_paired_as_data_sets_name_them(tmp_path, visible, infrared):
    pairs, alone = pair_files(*folders(tmp_path, visible, infrared))
    assert names_of(pairs, tmp_path) == list(zip(visible, infrared, strict=True)) and not alone


@pytest.mark.parametrize("visible, infrared, paired", [
    (["a.png"], ["b.png"], []), (["cat1.png"], ["dog1.png"], []), (["1_rgb.png", "2_rgb.png"], ["3_ir.png"], []),
    (["12_3.png", "9.png"], ["1_23.png", "9.png"], [("9.png", "9.png")]),
    (["x/1.png", "9.png"], ["y/1.png", "9.png"], [("9.png", "9.png")]),
    (["2023_1.png", "2023_2.png"], ["2024_1.png", "2024_2.png"], []),
    (["day_1.png", "day_2.png"], ["day_1_t.png", "night_2_t.png"], [("day_1.png", "day_1_t.png")])])
def test_names_of_other_things_are_not_paired(tmp_path, visible, infrared, paired):
    paths = folders(tmp_path, visible, infrared)
    if not paired:
        with pytest.raises(InputError, match=r"no image in .* has the name of one in"):
            pair_files(*paths)
    else:
        pairs, alone = pair_files(*paths)
        assert names_of(pairs, tmp_path) == paired and len(alone) == 2


@pytest.mark.parametrize("visible, infrared, candidates", [
    (["1_rgb.png", "1_vis.png"], ["1_ir.png"], ["v/1_rgb.png", "v/1_vis.png"]),
    (["a.png"], ["A.png", "A.PNG"], ["i/A.PNG", "i/A.png"]),
    (["Car.png", "CAR.png"], ["car.png"], ["v/Car.png", "v/CAR.png"]),
    (["car.png"], ["Car.png", "CAR.png"], ["i/Car.png", "i/CAR.png"])])
def test_what_is_ambiguous_is_refused_with_the_candidates(tmp_path, visible, infrared, candidates):
    with pytest.raises(InputError) as caught:
        pair_files(*folders(tmp_path, visible, infrared))
    assert all(str(tmp_path / name) in str(caught.value) for name in candidates)


def test_words_that_did_not_count_are_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pair_files(*folders(tmp_path, ["1_RGB.png"], ["1_thermal.png"]))
    assert "rgb is left out of those of the visible images, and thermal of the infrared ones" in caplog.text


def test_one_folder_may_hold_both_kinds_and_the_results(tmp_path):
    folder, _ = folders(tmp_path, ["1.jpg", "1_IR.jpg", "2_rgb.jpg", "2_ir.jpg", "out/1-fused.png", ".1.jpg"], [])
    pairs, alone = pair_files(folder, folder, left_out=os.path.join(folder, "out"))
    assert names_of(pairs, tmp_path) == [("1.jpg", "1_IR.jpg"), ("2_rgb.jpg", "2_ir.jpg")] and not alone
    alone = pair_files(folder, folder)[1]
    assert [os.path.basename(path) for path in alone] == ["1-fused.png"]


def test_the_infrared_folder_may_lie_within_the_visible_one(tmp_path):
    folder, _ = folders(tmp_path, ["1.jpg", "ir/1.jpg"], [])
    pairs, alone = pair_files(folder, os.path.join(folder, "ir"))
    assert names_of(pairs, tmp_path) == [("1.jpg", "ir/1.jpg")] and not alone


def test_pipes_are_left_out(tmp_path, named_pipe):
    paths = folders(tmp_path, ["1.png"], ["1.png"])
    for path in paths:
        named_pipe(os.path.join(path, "2.png"))
    pairs, alone = pair_files(*paths)
    assert len(pairs) == 1 and not alone


def test_masks_are_matched_by_the_same_rules():
    found = match_names(["f_1_RGB.png", "f_2_RGB.png"], ["f_1_mask.png", "f_2_mask.png"], (VISIBLE_WORDS, MASK_WORDS))
    assert found.partners == {"f_1_RGB.png": "f_1_mask.png", "f_2_RGB.png": "f_2_mask.png"}


def test_of_a_masked_array_the_values_are_taken(recwarn):
    values = np.arange(63, dtype=np.int32).reshape(7, 9) * 10
    masked = np.ma.masked_greater(values, 500)
    assert np.array_equal(to_picture(masked).pixels, to_picture(values).pixels)
    assert not recwarn.list
