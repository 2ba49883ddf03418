"""Films, and folders of numbered frames, as frames with a time; frames of two films that belong together."""
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from utils.errors import InputError, UsageError
from utils.text import counted, first_line, printable

from .pairing import stem
from .pictures import SUFFIXES, list_pictures, read_picture

USUAL_RATE = 25.0  # frames a second of a film that does not say it
CUT_OFF = 0.5  # seconds that may be missing at a film's end: sound may go on for so long
TOLERANCE = 1e-3  # seconds; containers round times, to milliseconds at worst


logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    time: float  # seconds
    read: Callable[[], np.ndarray]  # the pixels, (h, w, 3) uint8 RGB


class Film:
    """Frames in the order of their times, read once.

    Attributes:
        path: of the file or folder.
        rate: frames a second, on average.
        count: how many frames there are; None if the file does not say it.
        sound: whether there is any.
        first, last: times of the frames that were read so far, in seconds; None before the first.
    """

    def __init__(self, path: str, rate: float, count: int | None, frames: Iterator[Frame], sound: bool = False):
        self.path = path
        self.rate = rate
        self.count = count
        self.sound = sound
        self.first: float | None = None
        self.last: float | None = None
        self._frames = frames

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            self.first = frame.time if self.first is None else self.first
            self.last = frame.time
            yield frame


class Pairing:
    """Iterates over the pairs of frames of two films: to each visible frame the nearest infrared one.

    A visible frame without one within half a frame of the slower film is dropped.

    Attributes:
        dropped_visible: visible frames without a partner so far.
        dropped_infrared: infrared frames that were no partner; complete when the iteration has ended.
    """

    def __init__(self, visible: Film, infrared: Film):
        self.visible = visible
        self.infrared = infrared
        self.dropped_visible = self.dropped_infrared = 0

    def __iter__(self) -> Iterator[tuple[Frame, Frame]]:
        within = 0.5 / min(self.visible.rate, self.infrared.rate) + TOLERANCE
        others = iter(self.infrared)
        current, following, used = next(others, None), next(others, None), False
        for frame in self.visible:
            while current and following and abs(following.time - frame.time) <= abs(current.time - frame.time):
                self.dropped_infrared += not used
                current, following, used = following, next(others, None), False
            if current is None or abs(current.time - frame.time) > within:
                self.dropped_visible += 1
                continue
            used = True
            yield frame, current
        self.dropped_infrared += (current is not None and not used) + (following is not None) + sum(1 for _ in others)


def open_film(path: str, seconds: tuple[float, float], rate: float, max_pixels: int) -> Film:
    """The frames of a film whose time is from `seconds[0]` on and before `seconds[1]`.

    Args:
        path: a film in any format that PyAV reads; or a folder of pictures whose names end in numbers, where frame n
            has the time n / rate.
        rate: frames a second, of a folder.
        max_pixels: width times height; a larger picture is refused.
    Raises:
        UsageError: there is no such file or folder, or PyAV is not installed.
        InputError: it cannot be read as a film; says why. Frames that are damaged raise it when they are read.
    """
    if os.path.isdir(path):
        return _open_folder(path, seconds, rate, max_pixels)
    if not os.path.isfile(path):
        raise UsageError(f"there is no file or folder {path!r}")
    if path.lower().endswith(SUFFIXES) and not path.lower().endswith(".gif"):  # that may be a film
        raise UsageError(f"{path!r} is a picture; of a film that is kept as pictures, name the folder")
    return _open_file(path, seconds, max_pixels)


def import_av():
    """The package PyAV.

    Raises:
        UsageError: it is not installed; says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError("films need the package PyAV, which is not installed: pip install -r requirements-film.txt"
                         ) from error
    return av


def _open_folder(path: str, seconds: tuple[float, float], rate: float, max_pixels: int) -> Film:
    numbered: dict[int, str] = {}
    for name, file in list_pictures(path).items():
        found = re.search(r"(\d{1,15})\D*$", os.path.basename(stem(name)))
        if not found:
            raise InputError(f"{printable(file)} has no number in its name, which would say where in the film it "
                             "belongs")
        other = numbered.setdefault(int(found[1]), file)
        if other != file:
            raise InputError(f"{printable(other)} and {printable(file)} have the same number, so it is unclear which "
                             f"is frame {found[1]}")
    if not numbered:
        raise InputError(f"{printable(path)} holds no pictures, whose names would end in the numbers of the frames")
    chosen = [number for number in sorted(numbered) if seconds[0] <= number / rate < seconds[1]]
    frames = (Frame(number / rate, lambda file=numbered[number]: read_picture(file, max_pixels).pixels)
              for number in chosen)
    return Film(path, rate, len(chosen), frames)


def _open_file(path: str, seconds: tuple[float, float], max_pixels: int) -> Film:
    av = import_av()
    try:
        container = av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{printable(path)} cannot be read as a film ({_reason(error)})") from error
    if not container.streams.video:
        raise InputError(f"{printable(path)} holds no pictures that change, only sound or other data")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InputError(f"{printable(path)}: its pictures are in a format (codec) that PyAV cannot decode; convert "
                         "the film to H.264")
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        raise InputError(f"{printable(path)} has frames of more than {max_pixels} pixels")
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
    count = stream.frames or None
    if count and seconds != (0, float("inf")):
        count = min(count, round((min(seconds[1], count / rate) - seconds[0]) * rate))
    return Film(path, rate, count, _decoded(container, stream, path, seconds, rate), bool(container.streams.audio))


def _decoded(container, stream, path: str, seconds: tuple[float, float], rate: float) -> Iterator[Frame]:
    """The frames of an open film; closes it at the end, and warns if that comes too early."""
    av = import_av()
    number, time = 0, 0.0
    with container:
        try:
            if seconds[0] > 0:
                container.seek(int(seconds[0] * av.time_base))  # to the key frame before it
            for frame in container.decode(stream):
                time = number / rate if frame.time is None else frame.time
                number += 1
                if time >= seconds[1]:
                    return
                if time >= seconds[0]:
                    yield Frame(time, lambda frame=frame: frame.to_ndarray(format="rgb24"))
            end = min(_stated_end(container, stream), seconds[1])
            if end > time + max(CUT_OFF, 2 / rate):
                logger.warning("%s ends after %.2f s, although it says %.2f s: it may be cut off; the frames so far "
                               "are used", printable(path), time, end)
        except av.FFmpegError as error:
            raise InputError(f"{printable(path)} cannot be decoded after {time:.2f} s and {counted(number, 'frame')} "
                             f"({_reason(error)})") from error


def _stated_end(container, stream) -> float:
    """The time at which a film says that it ends, in seconds; 0 if it does not say it."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    return (container.duration or 0) / import_av().time_base


def _reason(error: OSError) -> str:
    """FFmpeg's words for an error, without its number and the path."""
    return printable(error.strerror or first_line(error))
