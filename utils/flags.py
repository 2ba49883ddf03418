"""The parser of all scripts' command lines, and types and checks of flags that several of them share."""
import argparse
import difflib
import math
import os
import re
import sys
from typing import Any

from .errors import UsageError, naming
from .locations import exists, is_url
from .sizes import BLOCK, LARGEST_SIDE, SMALLEST_SIDE, SMALLEST_TILE, TILE, TOO_SMALL, WHOLE
from .text import LONGEST_LINE, printable

BERT = "./bert/pretrained_weights/bert-base-uncased"
URLS_TOO = ("check_parquet", "test_parquet", "train_parquet", "val_parquet")
OF_THE_USER = ("align", "table")  # flags that name a file of the user's own, so that no document says where it is
SPLITS = ("train", "val", "test")
RANDOM_IF_EMPTY = ("ck_bert", "ck_prefusion", "init_from", "init_from_lavt_one", "pretrained_swin_weights")
FUSION_METHODS = ("unet_fuser", "average", "maximum", "visible", "infrared", "given")  # the first alone has parameters
PICTURE_KINDS = ("fused", "mask", "overlay", "panel")  # that predict.py writes
FILM_VIEWS = ("fused", "overlay", "panel")  # that its films show
FILM_SUFFIXES = (".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")


class Ignored(argparse.Action):
    """A flag that is accepted and has no effect."""

    def __call__(self, parser, namespace, values, option_string=None):
        pass


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a wrong command line is one sentence, and `-` and `_` in the names of flags are the same.

    The published command lines have flags of both kinds.

    Args:
        elsewhere: flags of other programs, spelt with `_`, and for each what to do instead, for the error message.
    """

    def __init__(self, *args, elsewhere: dict[str, str] | None = None, **options):
        super().__init__(*args, **options)
        self.elsewhere = elsewhere or {}

    def error(self, message: str):
        self.exit(UsageError.exit_code, f"error: {printable(message.rstrip('.'), LONGEST_LINE)}; see --help\n")

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)  # what follows are no flags
        for name in (word.partition("=")[0] for word in words[:end]):
            if advice := self.elsewhere.get(f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name):
                self.error(f"argument {name}: there is no such flag here; {advice}")
        return super().parse_known_args([*map(self._as_declared, words[:end]), *words[end:]], namespace)

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            flag = rest[0].partition("=")[0]
            meant = difflib.get_close_matches(flag, self._option_string_actions, n=1) if flag.startswith("-") else []
            self.error(f"unrecognized arguments: {' '.join(rest)}" + (f"; is {meant[0]} meant?" if meant else ""))
        return namespace

    def _as_declared(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            for flag in self._option_string_actions:
                if flag.replace("_", "-") == name.replace("_", "-"):
                    return flag + equals + value
        return word


def at_least(least: float, kind: type = int, most: float | None = None):
    """An argparse type: a number of `kind` (int or float) from `least` on, up to `most`.

    By default `most` is 2³¹ − 1 for an int and 10³⁰ for a float, so that sums and products can be represented.
    """
    if most is None:
        most = 2 ** 31 - 1 if kind is int else 1e30

    def parse(text: str):
        try:
            value = kind(text) if text.isascii() else math.nan
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            limit = f"at most {most}" if value > most else f"at least {least}"
            raise argparse.ArgumentTypeError(f"must be a{' whole' if kind is int else ''} number of {limit}, not "
                                             f"'{printable(text, 40)}'")
        return value
    return parse


seed = at_least(0, most=2 ** 63 - 1)


def image_size(text: str) -> int:
    """An argparse type: a side in pixels that the segmenter can work on."""
    value = at_least(1)(text)
    if value < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(f"{value} is too small: {TOO_SMALL}; take {SMALLEST_SIDE} or more")
    if value > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{value} is too large: take at most {LARGEST_SIDE}")
    return value


def fuse_size(text: str) -> str | int:
    """An argparse type: `native`, `network`, or a longer side in pixels."""
    try:
        return text if text in ("native", "network") else at_least(BLOCK, most=LARGEST_SIDE)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("must be", "must be native, network or", 1)) from error


def tile_side(text: str) -> int:
    """An argparse type: the side of a tile in pixels, or 0."""
    return 0 if text == "0" else at_least(SMALLEST_TILE, most=LARGEST_SIDE)(text)


def time_range(text: str) -> tuple[float, float]:
    """An argparse type: two times in seconds with a colon between; without the first 0, without the second infinity."""
    try:
        first, last = (float(part) if part else None for part in text.split(":"))
    except ValueError:
        first, last = math.nan, math.nan
    found = (0.0 if first is None else first, math.inf if last is None else last)
    if not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError("must be two times in seconds, the second later, as in 1.5:20, 5: or :20, not "
                                         f"'{printable(text, 40)}'")
    return found


def heads_by_stage(text: str) -> str:
    """An argparse type: attention heads of the four stages as in `4-4-4-4`, or nothing; the text itself is kept."""
    if text and not re.fullmatch(r"[1-9][0-9]{0,5}(-[1-9][0-9]{0,5}){3}", text):
        raise argparse.ArgumentTypeError(f"'{printable(text, 40)}' is not four numbers of heads, as in 4-4-4-4")
    return text


def thresholds(text: str) -> tuple[float, ...]:
    """An argparse type: IoU thresholds between 0 and 1, separated by commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"must be numbers between 0 and 1 separated by commas, not {text!r}")
    return values


def picture_kinds(text: str) -> tuple[str, ...]:
    """An argparse type: one or more of PICTURE_KINDS, separated by commas."""
    kinds = [kind.strip() for kind in text.split(",")]
    if not set(kinds) <= set(PICTURE_KINDS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(PICTURE_KINDS)} separated by commas, not {text!r}")
    return tuple(kind for kind in PICTURE_KINDS if kind in kinds)


def proportions(text: str) -> list[float]:
    """An argparse type: shares of SPLITS, scaled to add up to 1; the last may be left out."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not 2 <= len(values) <= 3 or not all(0 <= value < math.inf for value in values) or not sum(values):
        raise argparse.ArgumentTypeError(f"must be two or three numbers, for {', '.join(SPLITS)}, as in 0.8,0.1,0.1; "
                                         f"not {text!r}")
    return [value / sum(values) for value in values] + [0.0] * (3 - len(values))


def split_files(folder: str) -> list[str]:
    """The files in `folder`, which is made, that --split writes.

    Raises:
        UsageError: it is the name of a file, or cannot be made.
    """
    if folder.endswith(".parquet"):
        raise UsageError(f"--out: with --split, give a folder, not {folder!r}")
    make_folder(folder, "--out")
    return [os.path.join(folder, f"mm_ris_{name}.parquet") for name in SPLITS]


def refuse_existing(files: list[str], overwrite: bool) -> None:
    """Check that results replace nothing, unless that was asked for.

    Raises:
        UsageError: one of the files exists, and `--overwrite` was not given.
    """
    there = [file for file in files if os.path.lexists(file)]
    if there and not overwrite:
        raise UsageError(f"--out: {there[0]} is there already; choose another place, or --overwrite")


def require_existing(args: argparse.Namespace, *names: str) -> None:
    """Check that each named flag points to a file or folder; those of RANDOM_IF_EMPTY may be empty, URLS_TOO be URLs.

    Raises:
        UsageError: naming the flag and the path.
        InputError: a URL cannot be reached.
    """
    for name in names:
        path = getattr(args, name)
        if not path and name not in RANDOM_IF_EMPTY:
            raise UsageError(f"--{name}: the path is empty; name a file or folder")
        if name in URLS_TOO and is_url(path):
            with naming(name):
                if not exists(path):
                    raise UsageError(f"there is no {path!r}, or it may not be read")
        elif path and not os.path.exists(path):
            hint = "" if name in OF_THE_USER else '; README.md, "Data and weights", says where to get it'
            raise UsageError(f"--{name}: there is no {path!r}{hint}")


def find_resume(resume: str, output_dir: str) -> str:
    """The file that `--resume` means: `auto` is last.pth in the output folder, or nothing if there is none.

    Raises:
        UsageError: a file was named that is not there.
    """
    if resume == "auto":
        last = os.path.join(output_dir, "last.pth")
        return last if os.path.isfile(last) else ""
    if os.path.isdir(resume):
        raise UsageError(f"--resume: {resume!r} is a folder; a run is resumed from last.pth or another file with the "
                         "state of its training, which an exported model lacks; --init_from starts a new run from one")
    if resume and not os.path.isfile(resume):
        raise UsageError(f"--resume: there is no file {resume!r}; --resume auto takes last.pth in --output-dir, if it "
                         "exists")
    return resume


def make_folder(path: str, flag: str) -> None:
    """Create a folder for results unless it is there.

    Raises:
        UsageError: it cannot be made or written to.
    """
    if not path:
        raise UsageError(f"{flag}: the path is empty; name a folder")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if os.path.isfile(path) else error.strerror
        raise UsageError(f"{flag}: the folder {path!r} cannot be made ({reason})") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"{flag}: the folder {path!r} is not writable")


def add_device_flag(parser: argparse._ActionsContainer) -> None:
    """Add `--device`, for `utils.device.select_device`, to a parser or group."""
    parser.add_argument("--device", default="auto",
                        help="auto (an Ascend NPU, else a CUDA GPU, else the CPU), cuda, npu or cpu; an index may "
                             "follow, as in cuda:1")


def add_accuracy_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--tta` and `--amp`."""
    parser.add_argument("--tta", choices=("none", "flip"), default="none",
                        help="flip: average with the result for the mirrored images, the words left and right "
                             "exchanged")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16 where accuracy permits")


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that default to what a checkpoint says; absent from the result unless given."""
    stored = "default: as stored in the checkpoint, else"
    parser.add_argument("--bert_tokenizer", default=argparse.SUPPRESS,
                        help="folder with BERT's vocabulary; serves for --ck_bert too, unless that is given "
                             f"({stored} {BERT})")
    parser.add_argument("--ck_bert", default=argparse.SUPPRESS,
                        help="folder with BERT's configuration, likewise; its weights are read only if the checkpoint "
                             f"has no text encoder ({stored} {BERT})")
    parser.add_argument("--img_size", type=image_size, default=argparse.SUPPRESS,
                        help=f"side of the square network input in pixels; above 32 ({stored} 480)")
    parser.add_argument("--mha", type=heads_by_stage, default=argparse.SUPPRESS,
                        help=f"attention heads of PWAM per stage, as in training ({stored} one head per stage)")


def checkpoint_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_checkpoint_flags` by name; None where one was not given."""
    return {name: getattr(args, name, None) for name in ("bert_tokenizer", "ck_bert", "img_size", "mha")}


def add_fusion_size_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the flags for the size at which pictures are fused."""
    parser.add_argument("--fuse_size", type=fuse_size, default=default, metavar="SIZE",
                        help="size at which the fused pictures are computed; native: that of the visible image; "
                             "network: --img_size, then resized; a number: the longer side in pixels. Masks do not "
                             "depend on it")
    parser.add_argument("--tile", type=tile_side, default=TILE, metavar="N",
                        help=f"unless --fuse_size is network: fuse pictures of more than {WHOLE} × N × N pixels in "
                             f"tiles of at most this side, at least {SMALLEST_TILE}, which bounds memory; 0: always "
                             "whole")
