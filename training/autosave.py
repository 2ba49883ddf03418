"""When to save between epochs, and what to do when somebody asks the run to stop."""
import signal
import time

from utils import distributed
from utils.workers import STOPPING

NOTHING, SAVE, STOP = 0, 1, 2


class Stopped(Exception):
    """Training ends here, saved, because a signal asked for it.

    Attributes:
        signal: the signal.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class Autosave:
    """Saves every few minutes, and when SIGTERM, SIGINT or SIGUSR1 (what Slurm can send before its limit) arrives.

    Args:
        write: saves the run; called by all processes at the same step.
        every_minutes: time between two saves.
    """

    def __init__(self, write, every_minutes: float):
        self.write, self.every_minutes = write, every_minutes
        self.signal: signal.Signals | None = None
        self.last = time.monotonic()
        for number in STOPPING:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who presses Ctrl-C twice means it

    def due(self) -> int:
        """NOTHING, SAVE or STOP, the same for all processes; each must ask once a step."""
        mine = STOP if self.signal else NOTHING
        if distributed.rank() == 0 and time.monotonic() - self.last >= 60 * self.every_minutes:
            mine = max(mine, SAVE)
        return distributed.largest(mine)

    def save(self) -> None:
        """Save now."""
        self.write()
        self.last = time.monotonic()

    def check(self) -> None:
        """Stop at once when asked to, where all has been saved already.

        Raises:
            Stopped
        """
        if self.signal:
            self.stop()

    def stop(self) -> None:
        """Raise Stopped; where only another process had a signal, that counts as SIGTERM."""
        raise Stopped(self.signal or signal.SIGTERM)
