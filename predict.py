"""Fuse your own infrared and visible pictures under the guidance of a sentence, and find what it refers to."""
import argparse
import functools
import logging
import os
import re

from utils.errors import InputError, UsageError, naming, run
from utils.files import file_stem, set_aside, unique_names
from utils.flags import (
    PICTURE_KINDS,
    ArgumentParser,
    add_checkpoint_flags,
    add_fusion_size_flags,
    at_least,
    make_folder,
    picture_kinds,
    require_existing,
)
from utils.sizes import MAX_PIXELS
from utils.streams import log_to_stdout
from utils.text import first_line, printable

logger = logging.getLogger("predict")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    needed = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--ckpt", **needed, help="checkpoint to use")
    parser.add_argument("--visible", **needed, help="image file, or folder of them")
    parser.add_argument("--infrared", **needed,
                        help="likewise; in folders, files of the same name (suffixes aside) form a pair")
    parser.add_argument("--text", **needed, action="append",
                        help="sentence that refers to the object; may be given several times")
    parser.add_argument("--out", default="./runs/predict", help="folder for the pictures")
    add_checkpoint_flags(parser)
    parser.add_argument("--device", default="auto",
                        help="auto (an Ascend NPU, else a CUDA GPU, else the CPU), cuda, npu or cpu; an index may "
                             "follow, as in cuda:1")
    parser.add_argument("--tta", choices=("none", "flip"), default="none",
                        help="flip: average with the result for the mirrored images, the words left and right "
                             "exchanged")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16 where accuracy permits")
    add_fusion_size_flags(parser, "native")
    parser.add_argument("--save", type=picture_kinds, default=",".join(PICTURE_KINDS), metavar="KINDS",
                        help="pictures to write, separated by commas")
    parser.add_argument("--format", choices=("png", "jpg"), default="png",
                        help="of the pictures; jpg (quality 95) takes less time and space; masks are PNG in any case")
    parser.add_argument("--max_pixels", type=at_least(1), default=MAX_PIXELS,
                        help="larger pictures are refused, as a small file can hold so many that memory runs out")
    return parser


def result_names(pair_names: list[str], texts: list[str]) -> list[list[str]]:
    """For each pair and each text a file name without kind and suffix, all different: `FLIR_00018-the_red_car`."""
    words = [re.sub(r"\W+", "_", text)[:60].strip("_") or "text" for text in texts]
    words = unique_names(words, list(range(1, len(words) + 1)))
    stems = [file_stem(f"{name}-{word}") for name in pair_names for word in words]
    names = unique_names(stems, list(range(1, len(stems) + 1)))
    return [names[i : i + len(texts)] for i in range(0, len(names), len(texts))]


def parse_args() -> argparse.Namespace:
    args = build_parser().parse_args()
    require_existing(args, "ckpt")
    for text in args.text:
        if not text.strip():
            raise UsageError("--text: the sentence is empty")
        if re.search("[\ud800-\udfff]", text):
            raise UsageError(f"--text: '{printable(text)}' is not in the encoding of this terminal, or not valid UTF-8")
    return args


def main() -> None:
    args = parse_args()

    # After the command line is known to be good: these take seconds.
    from tqdm.contrib.logging import logging_redirect_tqdm

    from data.pictures import pair_files
    from evaluation.inference import open_checkpoint
    from predictor import Predictor
    from utils.device import select_device
    from utils.progress import progress_bar

    log_to_stdout()
    pairs, unpaired = pair_files(args.visible, args.infrared, left_out=args.out)
    if unpaired:
        logger.warning("no partner for %d of the images, which are left out: %s", len(unpaired),
                       ", ".join(map(printable, unpaired)))
    make_folder(args.out, "--out")

    device = select_device(args.device)
    given = {name: getattr(args, name, None) for name in ("bert_tokenizer", "ck_bert", "img_size", "mha")}
    with naming("ckpt"):
        opened = open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, keep_memory=True,
                                 must_fuse=True, **given)
    predictor = Predictor(opened.model, opened.tokenizer, opened.img_size, device, fuse_size=args.fuse_size,
                          tile=args.tile, show_progress=True)

    names = result_names([files.name for files in pairs], args.text)
    earlier = f"({'|'.join(re.escape(name) for row in names for name in row)})-({'|'.join(PICTURE_KINDS)})\\.(png|jpg)"
    make_room = functools.cache(lambda: set_aside(args.out, earlier))  # once, and only when there are new pictures
    failed = 0
    with logging_redirect_tqdm():
        bar = progress_bar(pairs, unit="pair", disable=len(pairs) == 1)
        for files, stems in zip(bar, names, strict=True):
            try:
                process_pair(predictor, files, stems, args, make_room)
            except InputError as error:
                if len(pairs) == 1:
                    raise
                logger.error("error: %s", error)
                failed += 1
    if failed:
        raise InputError(f"{failed} of {len(pairs)} pairs could not be used; the reasons are above")


def process_pair(predictor, files, stems: list[str], args: argparse.Namespace, make_room) -> None:
    """Read a pair of files, and for each sentence write its pictures and say what was found.

    Args:
        stems: names of the pictures, one for each of `--text`.
        make_room: called before each picture is written.
    Raises:
        InputError: whatever goes wrong with this pair, in one sentence.
    """
    from data.pictures import read_pair
    from evaluation.predictions import describe, write_prediction

    try:
        pictures = read_pair(files.visible, files.infrared, args.max_pixels)
        for path, picture in zip((files.visible, files.infrared), pictures, strict=True):
            if picture.note:
                logger.info("%s: %s", printable(path), picture.note)
        pair = predictor.encode_pair(*(picture.pixels for picture in pictures))
        for stem, text in zip(stems, args.text, strict=True):
            prediction = predictor.predict(pair, text)
            make_room()
            paths = write_prediction(pair, text, prediction, os.path.join(args.out, stem), args.save, args.format)
            logger.info("%s, '%s': %s", printable(files.name), printable(text),
                        "\n".join([describe(prediction.mask), *(f"  {path}" for path in paths)]))
    except InputError:
        raise
    except Exception as error:  # decoders, NumPy and PyTorch raise many kinds; the other pairs can still be processed
        raise InputError(f"{printable(files.visible)} and {printable(files.infrared)} cannot be used "
                         f"({type(error).__name__}: {printable(first_line(error))})") from error


if __name__ == "__main__":
    run(main)
