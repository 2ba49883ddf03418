"""Films of fused frames: what `predict.py` makes of a visible and an infrared film."""
import contextlib
import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from data.films import Film, Pairing, import_av
from data.homography import warp
from utils.draw import outlined
from utils.errors import InputError
from utils.files import replacing
from utils.progress import progress_bar
from utils.text import counted, first_line, printable

from .predictions import prediction_panel

TIME_BASE = Fraction(1, 90_000)  # seconds; every usual frame rate is a multiple of it
ENCODER = "libx264"
QUALITY = "18"  # crf of x264: hardly to be told from the original
BT601, LIMITED = 6, 1  # how PyAV converts RGB, for players: else they guess from the size

logger = logging.getLogger(__name__)


class Once(logging.Filter):
    """Lets each message pass once: most are the same for all frames."""

    def __init__(self):
        super().__init__()
        self._seen = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._seen
        self._seen.add(message)
        return new


def make_film(predictor, films: tuple[Film, Film], text: str, out: str, *, show: str = "overlay", every: int = 1,
              matrix: np.ndarray | None = None) -> None:
    """Fuse two films frame by frame and say what was done.

    If it is interrupted or a later frame is damaged, the frames so far are a complete film.

    Args:
        predictor: a `predictor.Predictor`.
        films: visible and infrared, of `data.films.open_film`.
        text: the sentence.
        out: path of the film, MP4 with H.264, of the visible film's size and times, which begin at 0.
        show: one of utils.flags.FILM_VIEWS; overlay: the fused frame with the object tinted red and outlined.
        every: only every n-th pair of frames.
        matrix: by which infrared frames are warped, as in `data.homography.warp`.
    Raises:
        InputError: there are no frames, none at the same time, or one cannot be used; says which and why.
    """
    visible, infrared = films
    if any(film.sound for film in films):
        logger.info("the sound is left out")
    pairing = Pairing(visible, infrared)
    once = Once()
    frame_logger = logging.getLogger(type(predictor).__module__)
    frame_logger.addFilter(once)
    frames, found, error = 0, 0, None
    try:
        with replacing(out) as temporary, _writer(temporary, visible.rate / every) as write:
            total = visible.count and math.ceil(visible.count / every)
            try:
                for seen, heat in progress_bar(islice(pairing, 0, None, every), unit="frame", total=total):
                    picture, something = _frame(predictor, seen.read(), heat.read(), text, show, matrix)
                    write(picture, seen.time)
                    frames += 1
                    found += something
            except (InputError, KeyboardInterrupt) as stop:
                error = stop
            except ValueError as stop:  # of the predictor
                error = InputError(f"frame {frames + 1} cannot be used: {printable(first_line(stop))}")
            if not frames:
                raise error or InputError(_why_empty(pairing))
    finally:
        frame_logger.removeFilter(once)
    logger.info("%s: %s, the object found in %d of them; dropped for want of a partner: %s and %s", printable(out),
                counted(frames, "frame"), found, counted(pairing.dropped_visible, "visible frame"),
                counted(pairing.dropped_infrared, "infrared frame"))
    if error is not None:
        raise error


def _frame(predictor, visible: np.ndarray, infrared: np.ndarray, text: str, show: str, matrix: np.ndarray | None
           ) -> tuple[np.ndarray, bool]:
    """A frame of the result, (h, w, 3) uint8, and whether the object was found in it."""
    if matrix is not None:
        infrared = warp(infrared, matrix, visible).pixels
    pair = predictor.encode_pair(visible, infrared)
    prediction = predictor.predict(pair, text)
    draw = {"fused": lambda: prediction.fused, "overlay": lambda: outlined(prediction.fused, prediction.mask),
            "panel": lambda: prediction_panel(pair, text, prediction)}
    return draw[show](), bool(prediction.mask.any())


@contextlib.contextmanager
def _writer(path: str, rate: float) -> Iterator[Any]:
    """A context with a function that appends a picture, (h, w, 3) uint8, and its time in seconds to a new film."""
    av = import_av()
    if ENCODER not in av.codecs_available:
        raise InputError("this build of PyAV cannot encode H.264; install PyPI's: pip install -r requirements-film.txt")
    container = codec = stream = None
    start, last = 0.0, -1

    def write(picture: np.ndarray, time: float) -> None:
        nonlocal codec, stream, start, last
        if stream is None:
            start = time
            stream = container.add_stream(ENCODER, rate=Fraction(rate).limit_denominator(1001),
                                          options={"crf": QUALITY})
            codec = stream.codec_context
            codec.width, codec.height = (side + side % 2 for side in picture.shape[1::-1])  # yuv420p needs even sides
            codec.pix_fmt, codec.time_base = "yuv420p", TIME_BASE
            codec.colorspace, codec.color_range = BT601, LIMITED
        picture = np.pad(picture, [*((0, side % 2) for side in picture.shape[:2]), (0, 0)], mode="edge")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")  # of another size than the first: PyAV resizes it
        last = max(round((time - start) / TIME_BASE), last + 1)
        frame.pts, frame.time_base = last, TIME_BASE
        container.mux(stream.encode(frame))

    try:
        with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            yield write
            if stream is not None:
                container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise InputError(f"the film cannot be written ({printable(first_line(error))})") from error


def _why_empty(pairing: Pairing) -> str:
    for film in (pairing.visible, pairing.infrared):
        if film.first is None:
            return f"{printable(film.path)} holds no frames in the time that was asked for"
    ranges = " and ".join(f"{printable(film.path)} from {film.first:.2f} to {film.last:.2f} s"
                          for film in (pairing.visible, pairing.infrared))
    return f"the films have no frames at the same time: {ranges}"
