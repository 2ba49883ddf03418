"""Writing files so that neither a crash nor a full disk leaves half of one or costs the old one."""
import contextlib
import os

from .errors import InputError


@contextlib.contextmanager
def replacing(path: str):
    """Give the name of a temporary file beside `path`, which takes its place if the block succeeds and goes if not.

    The file is on the disk before it takes the name, so a power cut leaves the old one or the new one.

    Raises:
        InputError: the file cannot be written.
    """
    # Always the same name: what a killed process leaves is overwritten by the next.
    temporary = os.path.join(os.path.dirname(os.path.abspath(path)), f".{os.path.basename(path)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # it has taken its place, or was never made
            os.remove(temporary)
