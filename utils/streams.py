"""Standard output that does not end a program: a closed pipe, a full disk, characters that a terminal lacks."""
import os
import sys


class TolerantStream:
    """A text stream that discards what is written after its reader has gone, as in `predict.py … | head`.

    Any other reason why it cannot be written is printed once, to standard error.

    Args:
        stream: with a file descriptor.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
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
                print(f"standard output cannot be written ({error.strerror})", file=sys.stderr)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what the stream still holds
            os.close(nowhere)


def tolerant_stdout() -> None:
    """Make standard output a `TolerantStream` in which characters that cannot be encoded are escaped."""
    sys.stdout.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, TolerantStream):
        sys.stdout = TolerantStream(sys.stdout)
