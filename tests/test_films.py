"""Films: two of them in, one out."""
import io
import logging
from types import SimpleNamespace

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import in_process
from PIL import Image

from data.films import Film, Frame, Pairing, open_film
from evaluation.films import make_film
from predictor import Prediction
from utils.errors import InputError, UsageError

ALL = (0, float("inf"))


def write_film(path, levels, rate=10, size=(64, 48), start=0.0, codec="libx264", noise=1, key_frames=250, sound=False,
               **options):
    """A film of plain frames of these grey levels, or with noise above them."""
    numbers = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": str(key_frames)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if sound:
            container.mux(sound_packets(container))
        for number, level in enumerate(levels):
            pixels = level + numbers.integers(0, noise, (*size[::-1], 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            frame.pts = number + round(start * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def sound_packets(container) -> list:
    """A second of silence for a new file."""
    stream = container.add_stream("aac", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
    frame.rate, frame.pts = 8000, 0
    return [*stream.encode(frame), *stream.encode(None)]


def write_frames(folder, levels, size=(64, 48)):
    folder.mkdir()
    for number, level in levels.items():
        Image.fromarray(np.full((*size[::-1], 3), level, np.uint8)).save(folder / f"frame_{number:03}.png")
    return str(folder)


def read(path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def levels(pairs) -> list[tuple[int, int]]:
    """Grey levels of pairs of frames, to tens."""
    return [tuple(round(frame.read().mean() / 10) * 10 for frame in pair) for pair in pairs]


class Average:
    """Stands for a Predictor: the average of both, the object where the infrared image is brighter than 150."""

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def encode_pair(self, visible, infrared):
        self.calls += 1
        logging.getLogger(__name__).warning("the same for all frames")
        if self.calls == self.fail_at:
            raise self.error
        infrared = np.asarray(Image.fromarray(infrared).resize(visible.shape[1::-1]))
        return SimpleNamespace(visible=visible, infrared=infrared)

    def predict(self, pair, text):
        fused = ((pair.visible.astype(int) + pair.infrared) // 2).astype(np.uint8)
        mask = pair.infrared[..., 0] > 150
        return Prediction(fused, mask, mask.astype(np.float32))


def film(path, seconds=ALL, rate=10.0):
    return open_film(path, seconds, rate, 10**6)


def test_frames_are_paired_by_time_at_differing_rates_and_the_rest_counted(tmp_path):
    visible = film(write_film(tmp_path / "v.mp4", range(10, 130, 10), rate=10))  # 0 to 1.1 s
    infrared = film(write_film(tmp_path / "i.mp4", range(100, 200, 20), rate=5, size=(32, 24)))  # 0 to 0.8 s
    pairing = Pairing(visible, infrared)
    found = levels(pairing)
    assert len(found) == 10 and pairing.dropped_visible == 2 and pairing.dropped_infrared == 0
    assert found[0::2] == [(10, 100), (30, 120), (50, 140), (70, 160), (90, 180)]
    swapped = Pairing(film(str(tmp_path / "i.mp4")), film(str(tmp_path / "v.mp4")))
    assert levels(swapped) == [(100, 10), (120, 30), (140, 50), (160, 70), (180, 90)]
    assert swapped.dropped_visible == 0 and swapped.dropped_infrared == 7


def at(*times, rate=10.0) -> Film:
    """A film with frames at these times, of 8×8 pixels."""
    return Film("film", rate, len(times), (Frame(time, lambda: np.zeros((8, 8, 3), np.uint8)) for time in times))


def test_a_frame_gets_the_nearest_one_and_what_is_left_counts_as_dropped():
    pairing = Pairing(at(0, 0.05, 0.6), at(0, 0.098, 0.7))
    assert [(one.time, other.time) for one, other in pairing] == [(0, 0), (0.05, 0.098)]
    assert (pairing.dropped_visible, pairing.dropped_infrared) == (1, 1)
    pairing = Pairing(at(0), at(9))
    assert not list(pairing) and (pairing.dropped_visible, pairing.dropped_infrared) == (1, 1)


def test_frames_of_folders_are_paired_by_their_numbers(tmp_path):
    visible = write_frames(tmp_path / "v", {1: 10, 2: 20, 3: 30, 10: 100})
    infrared = write_frames(tmp_path / "i", {2: 120, 3: 130, 4: 140, 10: 200})
    pairing = Pairing(film(visible), film(infrared))
    assert levels(pairing) == [(20, 120), (30, 130), (100, 200)]
    assert pairing.dropped_visible == 1 and pairing.dropped_infrared == 1
    assert [frame.time for frame in film(visible, (0.2, 1.0))] == [0.2, 0.3]
    (tmp_path / "v" / "frame_003.png").rename(tmp_path / "v" / "early_20.png")
    assert [frame.time for frame in film(visible)] == [0.1, 0.2, 1.0, 2.0]


@pytest.mark.parametrize("show", ["fused", "overlay", "panel"])
def test_a_film_has_the_visible_frames_times_and_an_even_size(show, tmp_path, caplog):
    caplog.set_level("INFO")
    write_frames(tmp_path / "v", {number: 40 + 10 * number for number in (3, 4, 6, 7)}, size=(63, 47))
    infrared = write_film(tmp_path / "i.mp4", [100] * 6 + [200] * 3)
    out = tmp_path / "out.mp4"
    make_film(Average(), (film(str(tmp_path / "v")), film(infrared)), "the disc", str(out), show=show)
    frames = read(out)
    assert [time for time, _ in frames] == pytest.approx([0, 0.1, 0.3, 0.4], abs=1e-3)
    assert "4 frames, the object found in 2 of them" in caplog.text
    with av.open(str(out)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 6, 1)
    content = out.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it has been loaded whole
    if show == "panel":
        assert frames[0][1].shape[1] > 120
    else:
        assert frames[0][1].shape == (48, 64, 3)
        assert np.abs(frames[1][1].astype(int) - 90).max() <= 3
        colour = frames[3][1][24, 32].astype(int)
        assert np.abs(colour - ([155, 155, 155] if show == "fused" else [205, 78, 78])).max() <= 6


def test_every_and_seconds_choose_frames(tmp_path):
    files = [write_film(tmp_path / name, range(20, 220, 10), key_frames=6) for name in ("v.mp4", "i.mp4")]
    assert film(files[0], (0.5, 1.5)).count == 10
    make_film(Average(), tuple(film(path, (0.5, 1.5)) for path in files), "a", str(tmp_path / "out.mp4"), show="fused",
              every=4)
    frames = read(tmp_path / "out.mp4")
    assert [round(time, 3) for time, _ in frames] == [0, 0.4, 0.8]
    assert [round(frame.mean() / 10) * 10 for _, frame in frames] == [70, 110, 150]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(1.2, abs=0.01)  # the last frame is shown as long


def test_infrared_frames_are_warped(tmp_path):
    files = [write_frames(tmp_path / name, {0: level}) for name, level in (("v", 50), ("i", 150))]
    make_film(Average(), tuple(map(film, files)), "a", str(tmp_path / "out.mp4"), show="fused",
              matrix=np.array([[1.0, 0, 32], [0, 1, 0], [0, 0, 1]]))
    picture = read(tmp_path / "out.mp4")[0][1].astype(int)
    assert abs(picture[:, :28].mean() - 50) < 3 and abs(picture[:, 36:].mean() - 100) < 3


def test_frames_of_other_sizes_and_equal_times_have_a_place(tmp_path):
    def frames():
        for number, side in enumerate((8, 16, 8)):
            yield Frame(number // 2 / 10, lambda side=side: np.full((side, 2 * side, 3), 90, np.uint8))

    make_film(Average(), (Film("v", 10, 3, frames()), at(0, 0.1)), "a", str(tmp_path / "out.mp4"), show="fused")
    assert [frame.shape for _, frame in read(tmp_path / "out.mp4")] == [(8, 16, 3)] * 3


def test_what_is_the_same_for_all_frames_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    with_sound = write_film(tmp_path / "v.mp4", [50] * 4, sound=True)
    make_film(Average(), (film(with_sound), film(write_film(tmp_path / "i.mp4", [50] * 4))), "a",
              str(tmp_path / "out.mp4"))
    assert caplog.text.count("the same for all frames") == caplog.text.count("the sound is left out") == 1
    logging.getLogger(__name__).warning("the same for all frames")
    assert caplog.text.count("the same for all frames") == 2


def test_what_was_made_before_an_interruption_can_be_played(tmp_path):
    files = [write_film(tmp_path / name, range(20, 220, 10)) for name in ("v.mp4", "i.mp4")]
    with pytest.raises(KeyboardInterrupt):
        make_film(Average(fail_at=8), tuple(map(film, files)), "a", str(tmp_path / "out.mp4"))
    assert len(read(tmp_path / "out.mp4")) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.mp4", "out.mp4", "v.mp4"]


def test_a_damaged_frame_ends_the_film_before_it(tmp_path):
    frames = [write_frames(tmp_path / name, dict.fromkeys(range(5), 90)) for name in "vi"]
    (tmp_path / "i" / "frame_003.png").write_text("no picture")
    with pytest.raises(InputError, match="frame_003.png cannot be decoded"):
        make_film(Average(), tuple(map(film, frames)), "a", str(tmp_path / "out.mp4"))
    assert len(read(tmp_path / "out.mp4")) == 3


def test_a_frame_that_the_predictor_refuses_ends_the_film_before_it(tmp_path):
    files = [write_frames(tmp_path / name, dict.fromkeys(range(5), 90)) for name in "vi"]
    with pytest.raises(InputError, match="^frame 3 cannot be used: not finite$"):
        make_film(Average(3, ValueError("not finite")), tuple(map(film, files)), "a", str(tmp_path / "out.mp4"))
    assert len(read(tmp_path / "out.mp4")) == 2


def test_films_without_a_common_time_say_so_and_leave_nothing(tmp_path):
    early, late = (write_frames(tmp_path / name, dict.fromkeys(numbers, 90)) for name, numbers in (
        ("v", range(5)), ("i", range(90, 95))))
    for files, message in (((early, late), "no frames at the same time: .*v from 0.00 to 0.40 s and .*i from 9.00"),
                           ((early, write_frames(tmp_path / "empty", {})), "empty holds no pictures")):
        with pytest.raises(InputError, match=message):
            make_film(Average(), tuple(map(film, files)), "a", str(tmp_path / "out.mp4"))
    with pytest.raises(InputError, match="v holds no frames in the time that was asked for"):
        make_film(Average(), (film(str(early), (50, 60)), film(str(early))), "a", str(tmp_path / "out.mp4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "i", "v"]


def test_what_is_no_film_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    write_frames(tmp_path / "same", {1: 10})
    (tmp_path / "same" / "other_1.png").write_bytes((tmp_path / "same" / "frame_001.png").read_bytes())
    write_frames(tmp_path / "names", {1: 10})
    (tmp_path / "names" / "cover.png").write_bytes((tmp_path / "same" / "frame_001.png").read_bytes())
    (tmp_path / "nothing").mkdir()
    for name, message in (("text.mp4", "cannot be read as a film"), ("same", "have the same number"),
                          ("nothing", "holds no pictures, whose names"),
                          ("names", "cover.png has no number in its name")):
        with pytest.raises(InputError, match=message):
            film(str(tmp_path / name))
    with pytest.raises(UsageError, match="there is no file or folder"):
        film(str(tmp_path / "absent.mp4"))
    with pytest.raises(UsageError, match="is a picture; of a film"):
        film(str(tmp_path / "names" / "cover.png"))
    with pytest.raises(InputError, match="more than 3071 pixels"):
        open_film(write_film(tmp_path / "v.mp4", [10]), ALL, 10, 64 * 48 - 1)


def test_a_film_without_pictures_that_can_be_decoded_is_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    content = tmp_path / "good.mp4"
    write_film(content, [10])
    (tmp_path / "codec.mp4").write_bytes(content.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    (tmp_path / "cut.mp4").write_bytes(content.read_bytes()[:200])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        container.mux(sound_packets(container))
    with av.open(str(tmp_path / "frameless.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    invalid = r"cannot be read as a film \(Invalid data found when processing input\)$"
    for name, message in (("empty.mp4", invalid), ("cut.mp4", invalid), ("codec.mp4", "convert the film to H.264$"),
                          ("sound.mp4", "holds no pictures that change, only sound"),
                          ("frameless.mkv", r"cannot be read as a film \(End of file\)$")):
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            film(str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_of_a_film_that_is_cut_off_the_frames_so_far_are_used_and_it_is_said(suffix, tmp_path, caplog):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    write_film(whole, [50] * 20, noise=150, movflags="+faststart")
    content = whole.read_bytes()
    cut.write_bytes(content[:int(0.7 * len(content))])
    with caplog.at_level("INFO"):
        make_film(Average(), (film(str(whole)), film(str(cut))), "a", str(tmp_path / "out.mp4"))
    count = len(read(tmp_path / "out.mp4"))
    assert 2 <= count <= 14
    assert [record.message for record in caplog.records if "cut off" in record.message] == [
        f"{cut} ends after {(count - 1) / 10:.2f} s, although it says 2.00 s: it may be cut off; the frames so far are "
        "used"]
    caplog.clear()
    list(film(str(cut), (0, count / 10)))
    list(film(str(whole), (0.2, 0.8)))
    list(film(write_film(tmp_path / f"late.{suffix}", range(20, 40), start=30)))
    assert not caplog.records


def test_without_pyav_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = write_film(tmp_path / "v.mp4", [10])
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match="pip install -r requirements-film.txt"):
        film(path)


@pytest.mark.parametrize(("flags", "message"), [
    (["--out", "film.avi"], "--out: for a film, name a file that ends in .mp4"),
    (["--out", "README.md"], "--out: for a film, name a file that ends in .mp4"),
    (["--out", "EXISTING"], "is there already; choose another name"),
    (["--text", "another"], "--text: a film shows one sentence"),
    (["--seconds", "5:2"], "--seconds: must be two times in seconds"), (["--seconds", "3"], "--seconds: must be two"),
    (["--every", "0"], "--every: must be a whole number"), (["--fps", "0"], "--fps: must be a number"),
    (["--show", "mask"], "--show: invalid choice"), (["--save", "mask"], "--save, --format: are for pictures"),
    (["--format", "jpg"], "--save, --format: are for pictures")])
def test_flags_that_do_not_go_with_films_are_refused(flags, message, tmp_path):
    (tmp_path / "film.mp4").write_text("a film")
    answer = in_process("predict.py", "--ckpt", "README.md", "--visible", "a.mp4", "--infrared", "b.mp4", "--text", "a",
                        *(str(tmp_path / "film.mp4") if flag == "EXISTING" else flag for flag in flags), ok=False)
    assert answer.returncode == 2 and message in answer.stderr


@pytest.mark.parametrize("flags", [["--seconds", "1:2"], ["--every", "2"], ["--fps", "5"], ["--show", "fused"]])
def test_flags_of_films_need_a_film(flags):
    answer = in_process("predict.py", "--ckpt", "README.md", "--visible", "a.png", "--infrared", "b.png", "--text", "a",
                        *flags, ok=False)
    assert answer.returncode == 2 and f"{flags[0]}: is for films" in answer.stderr


def test_predict_makes_a_film_of_two_films(trained, scenes, tmp_path):
    row = pq.read_table(scenes / "mm_ris_test.parquet").to_pylist()[0]
    for kind in ("visible", "infrared"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.open(io.BytesIO(row[f"{kind}_image"])).save(tmp_path / kind / f"{number}.png")
    said = in_process("predict.py", "--ckpt", trained / "last.pth", "--visible", tmp_path / "visible", "--infrared",
                      tmp_path / "infrared", "--film", "--fps", 10, "--text", "the red disc", "--device", "cpu",
                      "--out", tmp_path / "films" / "film.mp4").stdout
    assert "film.mp4: 3 frames" in said
    assert [frame.shape for _, frame in read(tmp_path / "films" / "film.mp4")] == [(64, 64, 3)] * 3
