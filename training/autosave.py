"""When to save within an epoch, and how a signal stops a run."""
import signal
import time

from utils import distributed
from utils.workers import STOPPING

NOTHING, SAVE, STOP = 0, 1, 2


class Stopped(Exception):
    """Training stops because of a signal, after saving.

    Attributes:
        signal: the signal.
        saved: False if the latest state could not be written.
    """

    def __init__(self, number: signal.Signals, saved: bool):
        super().__init__(number.name)
        self.signal, self.saved = number, saved


class Autosave:
    """Saves every few minutes, and when SIGTERM, SIGINT or SIGUSR1 (what Slurm can send before its limit) arrives.

    Args:
        write: saves the run, False if that failed; called by all processes at the same step.
        every_minutes: time between two saves.
    """

    def __init__(self, write, every_minutes: float):
        self.write, self.every_minutes = write, every_minutes
        self.signal: signal.Signals | None = None
        self.saved = True
        self.last = time.monotonic()
        for number in STOPPING:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C interrupts at once

    def due(self) -> int:
        """NOTHING, SAVE or STOP, the same in all processes, which must each call this once a step."""
        wanted = STOP if self.signal else NOTHING
        if distributed.rank() == 0 and time.monotonic() - self.last >= 60 * self.every_minutes:
            wanted = max(wanted, SAVE)
        return distributed.largest(wanted)

    def save(self) -> None:
        """Save now."""
        self.saved = self.write()
        self.last = time.monotonic()

    def check(self) -> None:
        """Stop if a signal has arrived; to be called where everything has been saved.

        Raises:
            Stopped
        """
        if self.signal:
            self.stop()

    def stop(self) -> None:
        """Raise Stopped, with SIGTERM where only another process received a signal."""
        raise Stopped(self.signal or signal.SIGTERM, self.saved)
