"""Errors that a person caused and can mend: shown as one sentence, never as a traceback."""
import sys


class InputError(Exception):
    """Data or weights that cannot be used; ends a script with exit code 1.

    The message is one sentence that names the file, row, flag or key and says what to do.
    """

    exit_code = 1


class UsageError(InputError):
    """A command line that cannot be carried out; ends a script with exit code 2."""

    exit_code = 2


def run(main) -> None:
    """Call `main()`; turn an InputError into its sentence on stderr and its exit code."""
    try:
        main()
    except InputError as error:
        # A DataLoader worker wraps the sentence in its own traceback; the sentence stands last.
        sentence = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
