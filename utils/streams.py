"""Standard output and logging that do not end a program: a closed pipe, a full disk, what a terminal cannot show."""
import contextlib
import logging
import os
import re
import sys

from .text import printable_lines

# What a terminal obeys, besides line ends, tabs, and \x1b[A, with which a progress bar goes up a line.
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[A)")


class TolerantStream:
    """A text stream that discards what is written after its reader has gone, as in `predict.py … | head`.

    Any other reason why it cannot be written is printed once, to standard error. Control characters, which names of
    files may hold, are escaped.

    Args:
        stream: with a file descriptor.
    Attributes:
        failed: whether something could not be written for another reason than a closed pipe.
    """

    def __init__(self, stream):
        self._stream = stream
        self.failed = False

    def write(self, text: str) -> int:
        shown = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
        self._attempt(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _attempt(self, action) -> None:
        try:
            action()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failed = True
                with contextlib.suppress(OSError):
                    print(f"error: standard output cannot be written ({error.strerror})", file=sys.stderr)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what the stream still holds
            os.close(nowhere)


def tolerant_streams() -> None:
    """Make standard output a `TolerantStream`; escape what the encoding of it or of standard error lacks.

    A stream that was closed by who started the program (`>&-`) discards what is written.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, it stays open
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put another object in its place
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, TolerantStream):
        sys.stdout = TolerantStream(sys.stdout)


class PlainFormatter(logging.Formatter):
    """The message alone, without the escape sequences that names and keys of files may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def log_to_stdout(level: int = logging.INFO) -> None:
    """Print what is logged from `level` on to standard output, unless logging is configured already."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler])
