"""Progress bars: drawn in a terminal; one line a minute where standard output is a file or a pipe."""
import sys

from tqdm import tqdm

EVERY = 60  # seconds between two lines; what finishes sooner prints none


class _Lines:
    """A file for tqdm that writes each state of a bar as a line of its own, without carriage returns."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        if text := text.strip():
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()


def bar_style() -> dict:
    """The options with which tqdm writes to standard output.

    In a file every bar has position 0: beside another bar, tqdm would write the control characters of cursor moves.
    """
    if sys.stdout.isatty():
        return {"file": sys.stdout, "dynamic_ncols": True}
    return {"file": _Lines(sys.stdout), "position": 0, "ncols": 0,
            "mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY}


def progress_bar(*args, **options) -> tqdm:
    """A tqdm bar on standard output."""
    return tqdm(*args, **bar_style(), **options)


def say(line: str) -> None:
    """Print a line without disturbing the bars."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()  # a pipe is buffered
