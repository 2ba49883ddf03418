"""Fuse your own infrared and visible pictures under the guidance of a sentence, and find what it refers to."""
import argparse
import logging
import os
import re
import sys

from utils.errors import InputError, UsageError, run
from utils.flags import ArgumentParser, add_checkpoint_flags, make_folder, require_existing

KINDS = ("fused", "mask", "overlay", "panel")

log = logging.getLogger("predict")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    needed = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--ckpt", **needed, help="checkpoint to use")
    parser.add_argument("--visible", **needed, help="image file, or folder of them")
    parser.add_argument("--infrared", **needed, help="likewise; in folders, files of the same name are a pair")
    parser.add_argument("--text", **needed, action="append",
                        help="the sentence that says which object is meant; may be given several times")
    parser.add_argument("--out", default="./runs/predict", help="folder for the pictures")
    add_checkpoint_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu; an index may follow, as in cuda:1")
    parser.add_argument("--tta", choices=("none", "flip"), default="none",
                        help="flip: average with the mirrored images, `left` and `right` in the text swapped for them")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    return parser


def result_names(pairs: list, texts: list[str]) -> list[list[str]]:
    """For each pair and each text a file name without kind and suffix, all different: `FLIR_00018-the_red_car`."""
    from utils.files import file_stem, unique_names

    words = [re.sub(r"\W+", "_", text)[:60].strip("_") or "text" for text in texts]
    words = unique_names(words, list(range(1, len(words) + 1)))
    stems = [file_stem(f"{pair.name}-{word}") for pair in pairs for word in words]
    names = unique_names(stems, list(range(1, len(stems) + 1)))
    return [names[i : i + len(texts)] for i in range(0, len(names), len(texts))]


def main() -> None:
    args = build_parser().parse_args()
    require_existing(args, "ckpt")
    for text in args.text:
        if not text.strip():
            raise UsageError("--text: the sentence is empty")
        if re.search("[\ud800-\udfff]", text):
            raise UsageError(f"--text: {text!r} is not in the encoding of this terminal, or not valid UTF-8")
    sys.stdout.reconfigure(errors="backslashreplace")  # names and sentences may hold what a terminal cannot show
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    # After the command line is known to be good: these take seconds.
    from tqdm.contrib.logging import logging_redirect_tqdm

    from data.pictures import pair_files
    from utils.files import set_aside
    from utils.progress import progress_bar

    pairs, alone = pair_files(args.visible, args.infrared)
    if alone:
        log.warning("no partner for %d of the images, which are left out: %s", len(alone), ", ".join(alone))
    make_folder(args.out, "--out")
    predictor = load(args)
    names = result_names(pairs, args.text)
    written = f"({'|'.join(re.escape(name) for row in names for name in row)})-({'|'.join(KINDS)})\\.png"
    failed = 0
    with logging_redirect_tqdm():
        bar = progress_bar(pairs, unit="pair", disable=len(pairs) == 1)
        for number, (files, stems) in enumerate(zip(bar, names, strict=True)):
            try:
                pair = read_pair(predictor, files)
            except InputError as error:
                if len(pairs) == 1:
                    raise
                log.error("error: %s", error)
                failed += 1
                continue
            if number == failed:  # the first that will be written
                set_aside(args.out, written)
            for stem, text in zip(stems, args.text, strict=True):
                log.info("%s, %r: %s", files.name, text, answer(predictor, pair, text, os.path.join(args.out, stem)))
    if failed:
        raise InputError(f"{failed} of {len(pairs)} pairs could not be used; the reasons are above")


def load(args: argparse.Namespace):
    """The `Predictor` that the command line asks for."""
    from predictor import Predictor
    from utils.device import keep_freed_memory

    names = ("bert_tokenizer", "ck_bert", "img_size", "mha")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        predictor = Predictor.from_checkpoint(args.ckpt, args.device, flip=args.tta == "flip", amp=args.amp, **given)
    except ValueError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None  # with its flags and exit code
        raise UsageError(f"--mha: {error}") from error
    keep_freed_memory(predictor.device)
    return predictor


def read_pair(predictor, files):
    """The `predictor.Pair` of a `data.pictures.PairOfFiles`; says what was done to the images.

    Raises:
        InputError: one of the files cannot be used.
    """
    from data.pictures import read_picture

    pictures = []
    for path in (files.visible, files.infrared):
        pictures.append(read_picture(path))
        if pictures[-1].note:
            log.info("%s: %s", path, pictures[-1].note)
    return predictor.encode_pair(*(picture.pixels for picture in pictures))


def answer(predictor, pair, text: str, stem: str) -> str:
    """Write the four pictures for one sentence, `{stem}-fused.png` and so on; return what they show and their paths."""
    import numpy as np
    from PIL import Image

    from utils.draw import outlined, overlay, panel
    from utils.files import replacing

    fused, mask, _ = predictor.predict(pair, text)
    page = panel(text, {"visible": pair.visible, "infrared": pair.infrared, "fused": fused,
                        "prediction": outlined(fused, mask)})
    lines = [describe(mask)]
    for kind, image in zip(KINDS, (fused, mask.astype(np.uint8) * 255, overlay(fused, mask), page), strict=True):
        path = f"{stem}-{kind}.png"
        with replacing(path) as temporary:
            Image.fromarray(image).save(temporary, "PNG")
        lines.append(f"  {path}")
    return "\n".join(lines)


def describe(mask) -> str:
    """Share and bounding box of a (h, w) bool mask, in words."""
    import numpy as np

    if not mask.any():
        return "nothing found"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (left, right), (top, bottom) = columns[[0, -1]], rows[[0, -1]]
    return (f"{100 * mask.mean():.2f} % of the image, box x {left} to {right}, y {top} to {bottom} "
            f"({right - left + 1}×{bottom - top + 1} px)")


if __name__ == "__main__":
    run(main)
