"""Files that a script is about to write."""
import os
from collections.abc import Iterable

from utils.errors import UsageError
from utils.text import printable


def check_outputs(outs: Iterable[str], inputs: Iterable[str], argument: str = "out") -> None:
    """Check that files can be written where they shall be, and that none of them is read as well.

    Args:
        argument: that names the outputs.
    Raises:
        UsageError: a folder does not exist, a folder has the file's name, or an output is an input under any name.
    """
    read = {_identity(path): path for path in inputs}
    for out in outs:
        if not os.path.isdir(os.path.dirname(os.path.abspath(out))) or os.path.isdir(out):
            raise UsageError(f"{printable(out)} is not a file name in an existing folder", argument)
        if os.path.exists(out) and _identity(out) in read:
            raise UsageError(f"{printable(out)} is also read, as {printable(read[_identity(out)])}; give another name",
                             argument)


def _identity(path: str) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return status.st_dev, status.st_ino
