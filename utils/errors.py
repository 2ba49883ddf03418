"""Errors that a person caused and can mend: shown as one sentence, never as a traceback."""
import contextlib
import sys

from .streams import tolerant_streams
from .text import printable_lines


class InputError(Exception):
    """Data or weights that cannot be used; ends a script with exit code 1.

    Args:
        sentence: names the file, row or key and says what to do.
        argument: the argument or flag that it is about, without dashes, where the caller's words do not say so.
    """

    exit_code = 1

    def __init__(self, sentence: str, argument: str | None = None):
        super().__init__(sentence)
        self.argument = argument

    def __str__(self) -> str:
        sentence = super().__str__()
        return f"{self.argument}: {sentence}" if self.argument else sentence


class UsageError(InputError):
    """A command line or call that cannot be carried out; ends a script with exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def naming(argument: str):
    """A context in which an InputError that names no argument gets this one."""
    try:
        yield
    except InputError as error:
        error.argument = error.argument or argument
        raise


def run(main) -> None:
    """Call a script's `main()` and exit with the code of how it ended: 0, 1, 2, or 130 after Ctrl-C.

    An InputError becomes its sentence on standard error, where arguments are flags. Characters that a terminal lacks
    are escaped. A closed pipe on standard output is no error, a full disk there is one.
    """
    tolerant_streams()
    try:
        code = _code_of(main)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    if sys.stdout.failed:
        code = code or 1
    if code:
        sys.exit(code)


def _code_of(main) -> int:
    try:
        main()
    except InputError as error:
        # A DataLoader worker wraps the sentence in its own traceback; the sentence stands last.
        sentence = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        _complain(f"error: {'--' if error.argument else ''}{sentence}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return 0


def _complain(text: str) -> None:
    """Print to standard error, without the escape sequences that names and keys of files may hold."""
    with contextlib.suppress(OSError):
        print(printable_lines(text), file=sys.stderr)
