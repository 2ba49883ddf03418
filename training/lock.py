"""A lock on the folder of a run, so that two runs cannot write to one folder."""
import contextlib
import os

from utils import distributed
from utils.errors import UsageError
from utils.files import lock

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
        if distributed.rank() == 0:
            file = stack.enter_context(open(os.path.join(folder, NAME), "a", encoding="ascii"))
            taken = lock(file)
        if distributed.largest(not taken):
            raise UsageError(f"another training run is writing to {folder!r}; wait until it has ended, or name another "
                             "folder", "output-dir")
        yield
