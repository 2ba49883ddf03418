"""One model for all visitors of the page: sentences about pairs of picture files, answered one after the other."""
import contextlib
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.pictures import PairOfFiles, read_bytes, read_pair
from predictor import Pair, Prediction, Predictor
from utils.errors import InputError
from utils.text import counted, first_line, printable

from .recent import Recent

MOST_SENTENCES = 10  # for one pair at a time
LONGEST_TEXT = 4000  # characters of all sentences together

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What one sentence gave."""

    text: str
    prediction: Prediction
    seconds: float
    notes: list[str]  # what the predictor said about the sentence


class Answered(NamedTuple):
    """A pair of pictures and the answers to the sentences about it."""

    files: PairOfFiles   # names of the pictures as they were given, without folders
    pair: Pair
    notes: list[str]     # what is to be known about the pictures
    reused: bool         # whether the pair had been encoded before
    seconds: float       # that reading and encoding it took
    answers: list[Answer]


class SharedPredictor:
    """Answers sentences about pairs of files; the latest pairs and answers stay in memory.

    Args:
        predictors: by fusion size, of one model.
        max_pixels: larger pictures are refused.
        memory: bytes for pairs and answers together, besides the one at work.
        forgotten: called with the key of answers that are no longer kept.
    """

    def __init__(self, predictors: dict[str, Predictor], max_pixels: int, memory: int,
                 forgotten: Callable[[str], None] = lambda key: None):
        self.predictors = predictors
        self.max_pixels = max_pixels
        self._pairs = Recent(memory // 2)
        self._answered = Recent(memory // 2, forgotten)
        self._model = threading.Lock()

    def ask(self, visible: str | None, infrared: str | None, text: str, size: str,
            progress: Callable[[int, int], None] = lambda done, total: None) -> str:
        """Answer sentences about a pair.

        Args:
            visible, infrared: paths of picture files; None: not given.
            text: one sentence a line.
            size: key of `predictors`.
            progress: called with the number of sentences that are done, and of all.
        Returns:
            The key under which `recall` gives the answers.
        Raises:
            InputError: it cannot be done, in one sentence that names files without folders.
        """
        sentences = split_sentences(text)
        for path, kind in ((visible, "visible"), (infrared, "infrared")):
            if path is None:
                raise InputError(f"The {kind} picture is missing: drop it, paste it, or choose a file.")
            if not os.path.isfile(path):
                raise InputError(f"The {kind} picture is no longer kept here; please give it again.")
        if size not in self.predictors:
            raise InputError(f"Fused pictures have the size {' or '.join(self.predictors)}, not '{printable(size)}'.")
        with self._model, in_words(visible, infrared):
            answered = self._answer(visible, infrared, sentences, size, progress)
        key = uuid.uuid4().hex
        self._answered.put(key, answered)
        return key

    def recall(self, key: str | None) -> Answered:
        """The answers that `ask` kept.

        Raises:
            InputError: they are not kept any longer.
        """
        answered = self._answered.get(key or "")
        if answered is None:
            raise InputError("These results are no longer kept in memory; press the button again.")
        return answered

    def _answer(self, visible: str, infrared: str, sentences: list[str], size: str, progress) -> Answered:
        start = time.perf_counter()
        key = _content_key(visible, infrared, size)
        known = self._pairs.get(key)
        if known is None:
            pictures = read_pair(visible, infrared, self.max_pixels)
            notes = [f"{printable(os.path.basename(path))}: {picture.note}"
                     for path, picture in zip((visible, infrared), pictures, strict=True) if picture.note]
            with notes_of_predictor() as said:
                pair = self.predictors[size].encode_pair(*(picture.pixels for picture in pictures))
            self._pairs.put(key, (pair, notes + said))
        pair, notes = known or (pair, notes + said)
        seconds = time.perf_counter() - start
        answers = []
        for number, sentence in enumerate(sentences):
            progress(number, len(sentences))
            start = time.perf_counter()
            with notes_of_predictor() as said:
                prediction = self.predictors[size].predict(pair, sentence)
            answers.append(Answer(sentence, prediction, time.perf_counter() - start, said))
        names = os.path.basename(visible), os.path.basename(infrared)
        return Answered(PairOfFiles(os.path.splitext(names[0])[0], *names), pair, notes, known is not None, seconds,
                        answers)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that has one a line.

    Raises:
        InputError: there is none, or there are too many.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("The sentence is empty: write which object is meant, as in “the red car on the left”.")
    if len(text) > LONGEST_TEXT:
        raise InputError(f"The text has more than {LONGEST_TEXT} characters; a sentence is a few words.")
    sentences = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(sentences) > MOST_SENTENCES:
        raise InputError(f"There are {counted(len(sentences), 'sentence')}, one a line; at most {MOST_SENTENCES} are "
                         "answered at a time.")
    return sentences


@contextlib.contextmanager
def in_words(*paths: str) -> Iterator[None]:
    """A context that ends in an InputError of one sentence, whatever goes wrong; without the folders of `paths`.

    What is no InputError is logged with its traceback.
    """
    try:
        yield
    except Exception as error:
        sentence = str(error)
        if not isinstance(error, InputError):  # decoders, NumPy and PyTorch raise many kinds
            logger.exception("these pictures and sentences could not be processed")
            sentence = f"This cannot be processed ({type(error).__name__}: {printable(first_line(error))})."
        for path in paths:
            sentence = sentence.replace(os.path.join(os.path.dirname(path), ""), "")
        raise InputError(sentence) from error


@contextlib.contextmanager
def notes_of_predictor() -> Iterator[list[str]]:
    """A context that collects what the predictor logs, such as words that the model does not know."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    of_predictor = logging.getLogger("predictor")
    level, propagate = of_predictor.level, of_predictor.propagate
    of_predictor.addHandler(handler)
    of_predictor.setLevel(logging.INFO)
    of_predictor.propagate = False  # visitors' sentences do not belong into the server's log
    try:
        yield said
    finally:
        of_predictor.removeHandler(handler)
        of_predictor.setLevel(level)
        of_predictor.propagate = propagate


def _content_key(visible: str, infrared: str, size: str) -> str:
    """The same for files of the same content."""
    digest = hashlib.sha256()
    for path in (visible, infrared):
        try:
            digest.update(hashlib.sha256(read_bytes(path)).digest())
        except ValueError as error:
            raise InputError(f"{printable(path)}: {error}") from error
    return f"{digest.hexdigest()} {size}"
