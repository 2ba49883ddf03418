"""What a training run leaves behind for people: log.jsonl, run.json, curves, pictures, TensorBoard."""
import contextlib
import json
import logging
import os
import re
import subprocess

from PIL import Image

from utils import checkpoint
from utils.errors import InputError
from utils.files import replacing
from utils.plot_log import plot

log = logging.getLogger(__name__)


class RunRecord:
    """Writes what a run leaves to its folder. What cannot be written costs a warning, not the run.

    Args:
        folder: the run's --output-dir.
        pictures: folder for a contact sheet of each epoch; empty: none.
        steps_done: in the whole run so far; what TensorBoard was told of later ones is void.
        active: False writes nothing, for all processes but one.
    """

    def __init__(self, folder: str, pictures: str, steps_done: int, active: bool = True):
        self.folder, self.pictures, self.active = folder, pictures, active
        self.board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(os.path.join(folder, "tensorboard"), purge_step=steps_done + 1)

    def start(self, summary: dict) -> None:
        """Write what the run is, to run.json."""
        self._write("run.json", json.dumps(summary, indent=1))

    def checkpoint(self, name: str, content: dict) -> None:
        """Write a checkpoint."""
        if self.active:
            self._tell_board(lambda board: board.flush())  # so that both know of the same steps
            with attempt(name):
                checkpoint.save(content, os.path.join(self.folder, name))

    def keep_latest(self, count: int) -> None:
        """Remove the checkpoints of all but the `count` latest epochs."""
        if self.active:
            epochs = sorted(name for name in os.listdir(self.folder) if re.fullmatch(r"epoch_\d+\.pth", name))
            for name in epochs[:-count]:
                with attempt(name):
                    os.remove(os.path.join(self.folder, name))

    def step(self, step: int, values: dict[str, float], rates: dict[str, float], samples_per_second: float,
             peak_memory: int, skipped: int) -> None:
        """Tell TensorBoard how training is going.

        Args:
            step: of the whole run.
            values: loss terms, and gradient norms named `gradient of …`.
            rates: learning rates by name.
            peak_memory: bytes.
            skipped: steps left out in this epoch.
        """
        tags = {f"gradient_norm/{name.removeprefix('gradient of ')}" if name.startswith("gradient of ")
                else f"loss/{name}": value for name, value in values.items()}
        tags |= {f"learning_rate/{name}": value for name, value in rates.items()}
        tags |= {"run/samples_per_second": samples_per_second, "run/peak_memory_GiB": peak_memory / 2 ** 30,
                 "run/skipped_steps": skipped}
        self._scalars(tags, step)

    def epoch(self, history: list[dict], sheet, step: int) -> None:
        """Write what an epoch has brought.

        Args:
            history: the entries of all epochs; log.jsonl holds them, one JSON object a line.
            sheet: contact sheet, (H, W, 3) uint8 array, or None.
            step: of the whole run.
        """
        if not self.active:
            return
        entry = history[-1]
        self._write("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))
        with attempt("curves.png"):
            plot([self.folder], os.path.join(self.folder, "curves.png"))
        if sheet is not None and self.pictures:
            with attempt("the epoch's picture"), \
                    replacing(os.path.join(self.pictures, f"epoch_{entry['epoch']:03d}.png")) as path:
                Image.fromarray(sheet).save(path, format="png")
        self._scalars({f"validation/{name}": value for name, value in entry.items() if name.startswith(
            ("mIoU", "oIoU", "cIoU", "Precision", "Recall", "F1", "precision@", "val_"))}, step)
        if sheet is not None:
            self._tell_board(lambda board: board.add_image("validation", sheet, step, dataformats="HWC"))
        self._tell_board(lambda board: board.flush())

    def close(self) -> None:
        """Finish TensorBoard's file."""
        self._tell_board(lambda board: board.close())

    def _write(self, name: str, text: str) -> None:
        if self.active:
            with attempt(name), replacing(os.path.join(self.folder, name)) as path, \
                    open(path, "w", encoding="utf-8") as file:
                file.write(text)

    def _scalars(self, tags: dict[str, float], step: int) -> None:
        self._tell_board(lambda board: [board.add_scalar(tag, value, step) for tag, value in tags.items()])

    def _tell_board(self, write) -> None:
        """Call `write` with TensorBoard's writer, until that has failed once."""
        if self.board is not None:
            board, self.board = self.board, None
            with attempt("TensorBoard's file"):
                write(board)
                self.board = board


@contextlib.contextmanager
def attempt(what: str):
    """A context in which a file that cannot be written, named by `what`, is a warning: training matters more."""
    try:
        yield
    except (OSError, InputError) as error:
        log.warning("WARNING: %s could not be written, training goes on: %s", what, error)


def git_commit() -> str | None:
    """The commit of the code, with `+` behind it if files have been changed since; None outside a git checkout."""
    def git(*words) -> str:
        return subprocess.run(["git", *words], cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                              capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
