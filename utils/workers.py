"""The worker processes of a DataLoader: which signals they ignore, and how they end."""
import multiprocessing
import signal


def end_workers() -> None:
    """Kill the processes that load data, if an error has left any; they ignore the signal that Python would send."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would take their end for another error
    for process in multiprocessing.active_children():
        process.kill()


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """For a DataLoader's workers: the scheduler signals them too, but they must serve until the step is done."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
