"""Errors that a person caused and can mend: shown as one sentence, never as a traceback."""
import contextlib
import sys


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
    """Call `main()`; turn an InputError into its sentence on stderr, where arguments are flags, and its exit code."""
    try:
        main()
    except InputError as error:
        # A DataLoader worker wraps the sentence in its own traceback; the sentence stands last.
        sentence = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        print(f"error: {'--' if error.argument else ''}{sentence}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
