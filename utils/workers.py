"""The worker processes of a DataLoader: which signals they ignore, and how they end."""
import multiprocessing
import signal

# Ask a program to end; not every system has every signal.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


def end_workers() -> None:
    """Kill the processes that load data, if an error has left any; they ignore the signal that Python would send."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would take their end for another error
    for process in multiprocessing.active_children():
        process.kill()


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """Ignore signals in a DataLoader's worker: a scheduler signals it too, but its data are needed to end the step."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
