"""What a training run writes for people to read: log.jsonl, run.json, curves, pictures, TensorBoard."""
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

logger = logging.getLogger(__name__)


class RunRecord:
    """Writes a run's files to its folder. A file that cannot be written is a warning; training goes on.

    Args:
        folder: the run's folder.
        pictures: folder for a contact sheet of each epoch; empty: none.
        steps_done: in the whole run so far; TensorBoard drops what its files hold of later steps.
        active: False writes nothing, for all processes but one.
    Attributes:
        unwritten: names of the files of which the latest version could not be written.
    """

    def __init__(self, folder: str, pictures: str, steps_done: int, active: bool = True):
        self.folder, self.pictures, self.active = folder, pictures, active
        self.unwritten: list[str] = []
        self.board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(os.path.join(folder, "tensorboard"), purge_step=steps_done + 1)

    def start(self, summary: dict) -> None:
        """Write the description of the run to run.json."""
        self._write("run.json", json.dumps(summary, indent=1))

    def checkpoint(self, name: str, content: dict) -> bool:
        """Write a checkpoint; False if that failed."""
        if self.active:
            self._to_board(lambda board: board.flush())  # so that both hold the same steps
            with self._attempt(name):
                checkpoint.save(content, os.path.join(self.folder, name))
        return name not in self.unwritten

    def keep_latest(self, count: int) -> None:
        """Remove the checkpoints of all but the `count` latest epochs."""
        if self.active:
            epochs = sorted(name for name in os.listdir(self.folder) if re.fullmatch(r"epoch_\d+\.pth", name))
            for name in epochs[:-count]:
                try:
                    os.remove(os.path.join(self.folder, name))
                except OSError as error:
                    logger.warning("WARNING: %s could not be removed, training goes on: %s", name, error)

    def step(self, step: int, values: dict[str, float], rates: dict[str, float], samples_per_second: float,
             peak_memory: int, skipped: int) -> None:
        """Add a step to TensorBoard's curves.

        Args:
            step: of the whole run.
            values: loss terms, and gradient norms named `gradient of …`.
            rates: learning rates by name.
            peak_memory: bytes.
            skipped: steps of this epoch that were skipped.
        """
        tags = {f"gradient_norm/{name.removeprefix('gradient of ')}" if name.startswith("gradient of ")
                else f"loss/{name}": value for name, value in values.items()}
        tags |= {f"learning_rate/{name}": value for name, value in rates.items()}
        tags |= {"run/samples_per_second": samples_per_second, "run/peak_memory_GiB": peak_memory / 2 ** 30,
                 "run/skipped_steps": skipped}
        self._scalars(tags, step)

    def epoch(self, history: list[dict], sheet, step: int) -> None:
        """Write the results of an epoch.

        Args:
            history: the entries of all epochs, which become the lines of log.jsonl.
            sheet: contact sheet, (H, W, 3) uint8 array, or None.
            step: of the whole run.
        """
        if not self.active:
            return
        entry = history[-1]
        self._write("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))
        with self._attempt("curves.png"):
            plot([self.folder], os.path.join(self.folder, "curves.png"))
        if sheet is not None and self.pictures:
            name = f"epoch_{entry['epoch']:03d}.png"
            with self._attempt(name), replacing(os.path.join(self.pictures, name)) as path:
                Image.fromarray(sheet).save(path, format="png")
        shown = ("mIoU", "oIoU", "cIoU", "Precision", "Recall", "F1", "precision@", "val_")
        self._scalars({f"validation/{name}": value for name, value in entry.items()
                       if name.startswith(shown) and isinstance(value, int | float)}, step)
        if sheet is not None:
            self._to_board(lambda board: board.add_image("validation", sheet, step, dataformats="HWC"))
        self._to_board(lambda board: board.flush())

    def close(self) -> None:
        """Finish TensorBoard's file."""
        self._to_board(lambda board: board.close())

    def _write(self, name: str, text: str) -> None:
        if self.active:
            with self._attempt(name), replacing(os.path.join(self.folder, name)) as path, \
                    open(path, "w", encoding="utf-8") as file:
                file.write(text)

    def _scalars(self, tags: dict[str, float], step: int) -> None:
        self._to_board(lambda board: [board.add_scalar(tag, value, step) for tag, value in tags.items()])

    def _to_board(self, write) -> None:
        """Call `write` with TensorBoard's writer, unless that has failed before."""
        if self.board is not None:
            board, self.board = self.board, None
            with self._attempt("tensorboard"):
                write(board)
                self.board = board

    @contextlib.contextmanager
    def _attempt(self, name: str):
        """A context in which failing to write the file `name` is a warning, and noted."""
        if name in self.unwritten:
            self.unwritten.remove(name)
        try:
            yield
        except (OSError, InputError) as error:
            self.unwritten.append(name)
            logger.warning("WARNING: %s could not be written, training goes on: %s", name, error)


def git_commit() -> str | None:
    """The commit of the code, followed by `+` if files have changed since; None outside a git checkout."""
    def git(*words) -> str:
        return subprocess.run(["git", *words], cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                              capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
