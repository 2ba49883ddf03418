"""A lock on the folder of a run, so that two runs cannot write to one folder."""
import contextlib
import os

from utils import distributed
from utils.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows, which has no such locks
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: str):
    """A context in which no other run may write to `folder`. The lock ends with the process, however that ends.

    It is taken by the main process; all processes must enter together.

    Raises:
        UsageError: another run holds it.
    """
    with contextlib.ExitStack() as stack:
        taken = True
        if distributed.rank() == 0 and fcntl is not None:
            file = stack.enter_context(open(os.path.join(folder, NAME), "a", encoding="ascii"))
            taken = _lock(file)
        if distributed.largest(not taken):
            raise UsageError(f"another training run is writing to {folder!r}; wait until it has ended, or name another "
                             "folder", "output-dir")
        yield


def _lock(file) -> bool:
    """Lock a file, unless another process has; a file system without locks counts as success.

    A POSIX lock, because worker processes, which may outlive a killed run by seconds, do not inherit it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
