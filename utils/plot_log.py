"""Training curves of one or more runs: `python utils/plot_log.py RUN [RUN ...] [--out FILE]`."""
import json
import os
import sys

if __package__ in (None, ""):  # started as a script: its folder, not the project's, is on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import InputError, UsageError, run
from utils.files import replacing
from utils.flags import ArgumentParser

LOSSES = ("total", "seg", "fusion")
METRICS = ("mIoU", "oIoU", "precision@0.5", "val_fusion")  # the last for runs that train the fuser alone


def read_log(folder: str) -> list[dict]:
    """The epochs in `folder`/log.jsonl.

    Raises:
        UsageError: there is no such file.
        InputError: a line in it is no epoch of a training run.
    """
    path = os.path.join(folder, "log.jsonl")
    if not os.path.isfile(path):
        raise UsageError(f"{folder}: there is no log.jsonl; name the --output-dir of a training run")
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
            epochs.append({name: epoch[name] for name in ("epoch", "total")} | {
                name: epoch[name] for name in (*LOSSES, *METRICS) if name in epoch})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: this is no epoch of a training run ({error!r})") from error
    return epochs


def plot(folders: list[str], picture: str) -> None:
    """Draw the training losses and the validation metrics of each run in `folders` to the file `picture`."""
    import matplotlib

    matplotlib.use("Agg")  # servers have no screen
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for folder, (style, marker) in zip(folders, (("-", "."), ("--", "s"), (":", "^"), ("-.", "x")) * len(folders),
                                       strict=False):
        epochs = read_log(folder)
        run_name = f"{os.path.basename(os.path.abspath(folder))} " if len(folders) > 1 else ""
        for axis, names in zip(axes, (LOSSES, METRICS), strict=True):
            axis.set_prop_cycle(None)  # the same colour for the same curve of every run
            for name in names:
                drawn = [epoch for epoch in epochs if name in epoch]
                if drawn:
                    axis.plot([epoch["epoch"] for epoch in drawn], [epoch[name] for epoch in drawn],
                              style, marker=marker, label=run_name + name)
    for axis, title in zip(axes, ("training loss", "validation (IoU and precision in percent)"), strict=True):
        axis.set(title=title, xlabel="epoch", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
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
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run(main)
