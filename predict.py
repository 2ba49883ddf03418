"""Fuse your own infrared and visible pictures under the guidance of a sentence, and find what it refers to."""
import argparse
import os
import re

from utils.errors import UsageError, run
from utils.flags import (
    FILM_SUFFIXES,
    FILM_VIEWS,
    PICTURE_KINDS,
    ArgumentParser,
    Ignored,
    add_accuracy_flags,
    add_checkpoint_flags,
    add_device_flag,
    add_fusion_size_flags,
    at_least,
    picture_kinds,
    require_existing,
    time_range,
)
from utils.sizes import MAX_PIXELS
from utils.text import printable

OF_FILMS = ("show", "every", "seconds", "fps")  # flags that need a film


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    needed = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--ckpt", **needed, help="checkpoint to use")
    parser.add_argument("--local-rank", action=Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--visible", help="image file, folder of them, or film")
    parser.add_argument("--infrared", help="likewise; in folders, files of the same name (suffixes aside) form a pair")
    parser.add_argument("--text", action="append",
                        help="sentence that refers to the object; may be given several times")
    parser.add_argument("--table", metavar="FILE",
                        help="instead of these three, CSV or TSV with columns visible, infrared, text and, as wanted, "
                             "name: pairs with a sentence each; paths are relative to the table")
    parser.add_argument("--align", metavar="FILE",
                        help="3×3 matrix from infrared to visible pixels, .json, .npy or .csv (data/align.py estimates "
                             "one): the infrared images are warped by it first")
    parser.add_argument("--out", default="./runs/predict", help="folder for the pictures and predictions.json")
    add_checkpoint_flags(parser)
    add_device_flag(parser)
    add_accuracy_flags(parser)
    add_fusion_size_flags(parser, "native")
    parser.add_argument("--save", type=picture_kinds, default=",".join(PICTURE_KINDS), metavar="KINDS",
                        help="pictures to write, separated by commas")
    parser.add_argument("--format", choices=("png", "jpg"), default="png",
                        help="of the pictures; jpg (quality 95) takes less time and space; masks are PNG in any case")
    parser.add_argument("--max_pixels", type=at_least(1), default=MAX_PIXELS,
                        help="larger pictures are refused, as a small file can hold so many that memory runs out")
    add_film_flags(parser)
    return parser


def add_film_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("films")
    group.add_argument("--film", action="store_true",
                       help="--visible and --infrared are folders of numbered frames; for files of films, whose suffix "
                            "tells, it is not needed. --out is then the film to write, .mp4")
    group.add_argument("--show", choices=FILM_VIEWS, default="overlay",
                       help="what the film shows; overlay: the fused frame with the object in translucent red and its "
                            "outline")
    group.add_argument("--every", type=at_least(1), default=1, metavar="N", help="only every N-th frame")
    group.add_argument("--seconds", type=time_range, metavar="A:B",
                       help="only frames from second A on and before B; either may be left out")
    group.add_argument("--fps", type=at_least(0.001, float, most=1000), default=25.0,
                       help="frames a second of folders of frames")


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args()
    require_existing(args, "ckpt")
    single = [name for name in ("visible", "infrared", "text") if getattr(args, name) is not None]
    if args.table is not None:
        require_existing(args, "table")
        if single:
            raise UsageError(f"--table: it has the pictures and sentences; leave out --{single[0]}")
    elif len(single) < 3:
        missing = ", ".join(f"--{name}" for name in ("visible", "infrared", "text") if name not in single)
        raise UsageError(f"{missing}: missing; give all of --visible, --infrared and --text, or --table")
    if args.align is not None:
        require_existing(args, "align")
    if args.table is None and any(path.lower().endswith(FILM_SUFFIXES) for path in (args.visible, args.infrared)):
        args.film = True
    if args.film:
        check_film(args)
    elif given := [name for name in OF_FILMS if getattr(args, name) != parser.get_default(name)]:
        raise UsageError(f"--{given[0]}: is for films; leave it out, or give films or --film")
    for text in args.text or ():
        if not text.strip():
            raise UsageError("--text: the sentence is empty")
        if re.search("[\ud800-\udfff]", text):
            raise UsageError(f"--text: '{printable(text)}' is not in the encoding of this terminal, or not valid UTF-8")
    return args


def check_film(args: argparse.Namespace) -> None:
    """Refuse flags that do not go with films."""
    if args.table is not None:
        raise UsageError("--film: a film is no table of pairs; leave out --table")
    if args.save != PICTURE_KINDS or args.format != "png":
        raise UsageError("--save, --format: are for pictures; of a film, --show says what it shows")
    if len(args.text) > 1:
        raise UsageError("--text: a film shows one sentence; make one film for each")
    if not args.out.lower().endswith(".mp4"):
        raise UsageError(f"--out: for a film, name a file that ends in .mp4, not {args.out!r}")
    if os.path.lexists(args.out):
        raise UsageError(f"--out: {args.out} is there already; choose another name")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("--film: a film is made by one process; start without torchrun")


def main() -> None:
    args = parse_args()

    from pair_runner import run_job  # after the command line is known to be good: imports take seconds

    run_job(args)


if __name__ == "__main__":
    run(main)
