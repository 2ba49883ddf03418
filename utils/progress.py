"""Progress bars: drawn in a terminal; in a log, where carriage returns only fill it, a line a minute."""
import sys

from tqdm import tqdm

EVERY = 60  # seconds between two lines in a log; what is done sooner leaves none


class _Lines:
    """A file for tqdm, which makes a line of each state of a bar."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        if text := text.strip():
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()


def bar_style() -> dict:
    """What to tell tqdm about standard output."""
    if sys.stdout.isatty():
        return {"file": sys.stdout, "dynamic_ncols": True}
    return {"file": _Lines(sys.stdout), "ncols": 0, "mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY}


def progress_bar(*args, **options) -> tqdm:
    """A tqdm bar on standard output."""
    return tqdm(*args, **bar_style(), **options)


def say(line: str) -> None:
    """Print a line beside the bars."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()  # a pipe would keep it
