"""Measure pictures that any method has fused, in folders beside those of their sources; no model is needed.

    python -m evaluation.fusion FUSED --visible DIR --infrared DIR
    python -m evaluation.fusion U2Fusion=results/u2 ours=results/ours --visible DIR --infrared DIR
"""
import argparse
import os
import re
import sys

if __package__ in (None, ""):  # started as a script: its folder, not the project's, is on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import InputError, UsageError, run
from utils.files import set_aside
from utils.flags import ArgumentParser, at_least, make_folder, seed
from utils.streams import log_to_stdout
from utils.text import counted, printable

SHOWN = 20  # images that cannot be used, whose reasons are printed


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m evaluation.fusion", description="Measure EN, SD, SF, AG, MI, SCD, CC, Qabf, VIF and SSIM of "
        "pictures that any method has fused.", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False)
    needed = {"required": True, "default": argparse.SUPPRESS, "metavar": "DIR"}
    parser.add_argument("fused", nargs="+", metavar="FUSED",
                        help="folder of a method's fused pictures, or NAME=DIR; several are measured on the same "
                             "images")
    parser.add_argument("--visible", **needed, help="folder of the visible images")
    parser.add_argument("--infrared", **needed, help="folder of the infrared images; files of the same name (suffixes "
                                                     "and words such as vis, ir and fused aside) belong together")
    parser.add_argument("--out", default="./runs/fusion_metrics.csv", metavar="FILE",
                        help="CSV file for the metrics of each image")
    parser.add_argument("-j", "--workers", type=at_least(0, most=1024), metavar="N",
                        default=min(8, os.cpu_count() or 1), help="worker processes; 0: measure in this process "
                        "(default: one per core, at most 8)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the bootstrap")
    return parser


def named_folders(words: list[str]) -> dict[str, str]:
    """The folder of each method by its name, from words of the form DIR or NAME=DIR.

    Raises:
        UsageError: there is no such folder, or two methods have the same name.
    """
    folders: dict[str, str] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals) or os.path.isdir(word):
            name, folder = os.path.basename(os.path.abspath(word)), word
        if not os.path.isdir(folder):
            raise UsageError(f"FUSED: there is no folder {printable(folder)!r}")
        if name in folders:
            raise UsageError(f"FUSED: two folders are called {printable(name)!r}; give them names, as in NAME=DIR")
        folders[name] = folder
    return folders


def main() -> None:
    args = build_parser().parse_args()
    folders = named_folders(args.fused)
    for flag in ("visible", "infrared"):
        if not os.path.isdir(getattr(args, flag)):
            raise UsageError(f"--{flag}: there is no folder {printable(getattr(args, flag))!r}")
    if os.path.isdir(args.out):
        raise UsageError(f"--out: {printable(args.out)!r} is a folder; name a file")

    import numpy as np  # after the command line is known to be good: these take seconds

    from evaluation import fusion_folders

    log_to_stdout()
    scenes = fusion_folders.find_scenes(folders, args.visible, args.infrared)
    folder, name = os.path.split(os.path.abspath(args.out))
    make_folder(folder, "--out")
    measured = list(fusion_folders.measure_all(scenes, args.workers))
    for line in [note for result in measured for note in result.notes]:
        print(line)
    errors = [result.error for result in measured if result.values is None]
    for line in errors[:SHOWN]:
        print(f"error: {line}")
    if len(errors) > SHOWN:
        print(f"and {len(errors) - SHOWN} more")
    if len(errors) == len(scenes):
        raise InputError("no image could be measured; the reasons are above")
    values = np.stack([result.values for result in measured if result.values is not None])
    used = [scene for scene, result in zip(scenes, measured, strict=True) if result.values is not None]
    print(f"{counted(len(used), 'image')}, 8-bit luma at the visible image's size\n")
    print(fusion_folders.table(list(folders), values, args.seed))
    set_aside(folder, re.escape(name))
    fusion_folders.write_values(args.out, list(folders), used, values)
    print(f"\nwrote {printable(args.out)}")
    if errors:
        raise InputError(f"{len(errors)} of {counted(len(scenes), 'image')} could not be measured and "
                         f"{'is' if len(errors) == 1 else 'are'} left out, of all methods; the reasons are above")


if __name__ == "__main__":
    run(main)
