"""Training curves of one or more runs: `python utils/plot_log.py RUN [RUN ...] [--out FILE]`."""
import json
import os
import sys

if __package__ in (None, ""):  # started as a script: its folder, not the project's, is on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import InputError, UsageError, run
from utils.files import replacing
from utils.flags import ArgumentParser
from utils.text import first_line, printable, printable_value

LOSSES = ("total", "seg", "fusion")
METRICS = ("mIoU", "oIoU", "precision@0.5", "val_fusion")  # the last for runs that train the fuser alone
LARGEST = 1e30  # what matplotlib can still draw


def read_log(folder: str) -> list[dict]:
    """The epochs in `folder`/log.jsonl: `epoch`, and those of LOSSES and METRICS that were measured in it.

    Raises:
        UsageError: there is no such file.
        InputError: it cannot be read, or a line in it is no epoch of a training run.
    """
    path = os.path.join(folder, "log.jsonl")
    if not os.path.isfile(path):
        raise UsageError(f"{printable(folder)}: there is no log.jsonl; name the output folder of a training run")
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(path)} cannot be read ({first_line(error)})") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epochs.append(_read_epoch(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{printable(path)}, line {number}: this is no epoch of a training run "
                             f"({printable(first_line(error))})") from error
    if not epochs:
        raise InputError(f"{printable(path)} is empty: no epoch of this run is finished")
    return epochs


def _read_epoch(line: str) -> dict[str, float]:
    epoch = json.loads(line)
    if not isinstance(epoch, dict):
        raise ValueError(f"it holds a {type(epoch).__name__}, not an object")
    for name in ("epoch", "total"):
        if name not in epoch:
            raise ValueError(f"it has no {name!r}")
    values = {name: epoch[name] for name in ("epoch", *LOSSES, *METRICS) if epoch.get(name) is not None}
    for name, value in values.items():
        if type(value) not in (int, float) or not -LARGEST < value < LARGEST:  # nor is NaN between the two
            raise ValueError(f"{name!r} is {printable_value(value, 40)}, not a finite number")
    return values


def plot(folders: list[str], picture: str) -> None:
    """Draw the training losses and the validation metrics of each run in `folders` to the file `picture`.

    Raises:
        UsageError, InputError: as `read_log`; also if the picture cannot be written.
    """
    logs = {folder: read_log(folder) for folder in folders}

    import matplotlib

    matplotlib.use("Agg")  # servers have no screen
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for folder, (style, marker) in zip(folders, (("-", "."), ("--", "s"), (":", "^"), ("-.", "x")) * len(folders),
                                       strict=False):
        epochs = logs[folder]
        name = os.path.basename(os.path.abspath(folder)).replace("$", r"\$")  # which begins a formula in matplotlib
        run_name = f"{name} " if len(folders) > 1 else ""
        for axis, names in zip(axes, (LOSSES, METRICS), strict=True):
            axis.set_prop_cycle(None)  # each curve has the same colour in all runs
            for name in names:
                drawn = [epoch for epoch in epochs if name in epoch]
                if drawn:
                    axis.plot([epoch["epoch"] for epoch in drawn], [epoch[name] for epoch in drawn],
                              style, marker=marker, label=run_name + name)
    for axis, title in zip(axes, ("training loss", "validation (IoU and precision in percent)"), strict=True):
        axis.set(title=title, xlabel="epoch", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    try:
        with replacing(picture) as path:
            figure.savefig(path, dpi=110, format=os.path.splitext(picture)[1][1:] or "png")
    except (InputError, ValueError) as error:  # no such folder, or no such kind of picture
        raise UsageError(f"the picture {picture!r} cannot be written ({error})") from error
    finally:
        plt.close(figure)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Draw training curves, several runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the --output-dir of a training run")
    parser.add_argument("--out", default="curves.png", help="picture to write (default: %(default)s)")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    plot(args.runs, args.out)
    print(f"wrote {printable(args.out)}")


if __name__ == "__main__":
    run(main)
