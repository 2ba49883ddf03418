"""What is printed about a training run: its header, its epochs, its end, and the command that resumes it."""
import logging
import os
import platform
import shlex

import torch

from utils import distributed
from utils.device import describe
from utils.text import counted

from .progress import Progress
from .run_record import git_commit

logger = logging.getLogger(__name__)


def describe_run(settings: dict, command: list[str], device: torch.device, model: torch.nn.Module, *, precision: str,
                 training_rows: int, validation_rows: int, step_samples: int) -> dict:
    """The run as plain values, for run.json; the essentials are also logged.

    Args:
        settings: plain values by flag name, among them `epochs` and `resume`.
        command: the words of the command line.
        model: a `models.RISFusion`.
        precision: what the networks compute in, as in `bfloat16`.
        training_rows, validation_rows: lengths of the two data sets.
        step_samples: samples in one optimizer step, over all processes.
    """
    millions = {name: round(sum(p.numel() for p in network.parameters()) / 1e6, 3)
                for name, network in model.networks().items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    epoch_steps = training_rows // step_samples
    logger.info("%s, %s, %s; parameters %s (%.1f M trained)", describe(device),
                counted(distributed.world_size(), "process", "processes"), precision,
                ", ".join(f"{name} {count:.1f} M" for name, count in millions.items()), trained)
    logger.info("%d training and %s; %s of %s, %s a step", training_rows, counted(validation_rows, "validation sample"),
                counted(settings["epochs"], "epoch"), counted(epoch_steps, "step"), counted(step_samples, "sample"))
    return {
        "device": describe(device), "processes": distributed.world_size(), "precision": precision,
        "million_parameters": millions, "million_trained": round(trained, 3), "training_samples": training_rows,
        "validation_samples": validation_rows, "effective_batch": step_samples, "steps_per_epoch": epoch_steps,
        "resumed_from": settings["resume"] or None, "git_commit": git_commit(), "python": platform.python_version(),
        "torch": torch.__version__, "command": command, "flags": settings}


def resuming_command(words: list[str], environment: dict[str, str]) -> str:
    """The command that resumes a run from its latest state.

    Args:
        words: of the command line that started it, the script first.
        environment: of the process, which shows whether torchrun started it.
    """
    kept = [word for before, word in zip(["", *words], words, strict=False)
            if before != "--resume" and word.split("=")[0] != "--resume"]
    launcher = "python"
    if "TORCHELASTIC_RUN_ID" in environment:
        one_node = environment["LOCAL_WORLD_SIZE"] == environment["WORLD_SIZE"]
        launcher = f"torchrun --nproc_per_node={environment['WORLD_SIZE']}" if one_node else "torchrun … (as before)"
    return f"{launcher} {shlex.join(kept)} --resume auto"


def describe_epoch(entry: dict) -> str:
    """One line about an epoch, from its entry in the log."""
    shown = "".join(f", {name} {_number(entry[name], digits)}"
                    for name, digits in (("mIoU", 2), ("oIoU", 2), ("val_total", 4)) if name in entry)
    loss = "no step with a finite loss" if entry["total"] is None else f"loss {entry['total']:.4f}"
    return f"epoch {entry['epoch']}: {loss}{shown}, {entry['samples_per_second']:.1f} samples/s"


def describe_end(progress: Progress, epochs: int, best: str) -> str:
    """The last line of a run: which epoch was the best, how good it is, and where its checkpoint is.

    Args:
        epochs: that were asked for.
        best: path of the best checkpoint; it is named if it is there.
    """
    done = f"{progress.epoch} of {counted(epochs, 'epoch')} done"
    if not os.path.isfile(best):
        return done
    entry = next((entry for entry in progress.history if entry["epoch"] == progress.best_epoch), None)
    if entry is None:  # stored by a run that did not note the epoch
        return f"{done}; the best is in {best}"
    score = (f"overall IoU {_number(entry['oIoU'], 2)}" if "oIoU" in entry else
             f"val_total {_number(entry['val_total'], 4)}")
    return f"{done}; best {score}, of epoch {progress.best_epoch}, in {best}"


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"
