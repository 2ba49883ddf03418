"""Fuse your own infrared and visible pictures under the guidance of a sentence, and find what it refers to."""
import argparse
import functools
import logging
import os
import re

from utils.errors import InputError, UsageError, naming, run
from utils.files import file_stem, set_aside, unique_names
from utils.flags import (
    FILM_SUFFIXES,
    FILM_VIEWS,
    PICTURE_KINDS,
    ArgumentParser,
    Ignored,
    add_checkpoint_flags,
    add_fusion_size_flags,
    at_least,
    make_folder,
    picture_kinds,
    require_existing,
    time_range,
)
from utils.sizes import MAX_PIXELS
from utils.text import counted, first_line, printable

RECORDS = "predictions.json"
WAIT = 24 * 60  # minutes until a process of several gives up the others, whose pairs may be larger

logger = logging.getLogger("predict")


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


def result_names(requests: list) -> list[list[str]]:
    """For each request a file name for each sentence, without kind and suffix: `FLIR_00018-the_red_car`; all differ.

    Args:
        requests: of `data.prepare.pair_tables.Request`.
    """
    stems = []
    for request in requests:
        words = [re.sub(r"\W+", "_", text)[:60].strip("_") or "text" for text in request.texts]
        words = unique_names(words, list(range(1, len(words) + 1)))
        stems.append([file_stem(f"{name}-{word}") for name, word in zip(request.names, words, strict=True)])
    flat = [stem for row in stems for stem in row]
    names = iter(unique_names(flat, list(range(1, len(flat) + 1))))
    return [[next(names) for _ in row] for row in stems]


def parse_args() -> argparse.Namespace:
    args = build_parser().parse_args()
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

    # After the command line is known to be good: these take seconds.
    from utils import distributed
    from utils.device import select_device

    device = select_device(args.device, distributed.local_rank())
    with distributed.job(device, WAIT):
        (film if args.film else predict)(args, device)


def film(args: argparse.Namespace, device) -> None:
    """Make a film of two.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from data.films import open_film
    from data.homography import read_matrix
    from evaluation.films import make_film

    with naming("align"):
        matrix = None if args.align is None else read_matrix(args.align)
    films = []
    for flag in ("visible", "infrared"):
        with naming(flag):
            films.append(open_film(getattr(args, flag), args.seconds or (0, float("inf")), args.fps, args.max_pixels))
    make_folder(os.path.dirname(args.out) or ".", "--out")
    predictor = open_predictor(args, device)
    with logging_redirect_tqdm():
        make_film(predictor, (films[0], films[1]), args.text[0], args.out, show=args.show, every=args.every,
                  matrix=matrix)


def predict(args: argparse.Namespace, device) -> None:
    """Process this process's share of the pairs; the main process writes what all have found to `predictions.json`.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence; the other pairs are processed before.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from data.homography import read_matrix
    from evaluation.results import write_json
    from utils import distributed
    from utils.progress import progress_bar

    with naming("align"):
        matrix = None if args.align is None else read_matrix(args.align)
    requests = find_requests(args)
    make_folder(args.out, "--out")
    predictor = open_predictor(args, device)

    names = result_names(requests)
    earlier = (f"({'|'.join(re.escape(name) for row in names for name in row)})-({'|'.join(PICTURE_KINDS)})\\.(png|jpg)"
               f"|{re.escape(RECORDS)}")
    make_room = functools.cache(lambda: set_aside(args.out, earlier))  # once, and only when there are new pictures
    rank, several = distributed.rank(), distributed.world_size() > 1
    if several:
        if rank == 0:
            make_room()
        distributed.wait_for_all()  # no process writes before the results of an earlier run are moved
    records: list[tuple[int, list[dict]]] = []
    failed = 0
    try:
        with logging_redirect_tqdm():
            mine = range(rank, len(requests), distributed.world_size())
            for number in progress_bar(mine, unit="pair", disable=len(requests) == 1 or rank > 0):
                records.append((number, []))
                try:
                    process_pair(predictor, requests[number], names[number], args, matrix,
                                 (lambda: None) if several else make_room, records[-1][1])
                except InputError as error:
                    if len(requests) == 1 and not several:
                        raise
                    logger.error("error: %s", error)
                    failed += 1
        if several:
            records, failed = sorted(distributed.joined(records)), sum(distributed.gather(failed))
    finally:  # what was found before an interruption is kept, too
        found = [entry for _, entries in records for entry in entries]
        if rank == 0 and found:
            path = os.path.join(args.out, RECORDS)
            write_json(path, {"ckpt": args.ckpt, "predictions": found})
            logger.info("%s: %s", path, counted(len(found), "prediction"))
    distributed.wait_for_all()
    if failed and rank == 0:
        raise InputError(f"{failed} of {len(requests)} pairs could not be used; the reasons are above")


def find_requests(args: argparse.Namespace) -> list:
    """The pairs of files, each with its sentences, as `data.prepare.pair_tables.Request`.

    Raises:
        UsageError, InputError: there is none; says why.
    """
    from data.pictures import pair_files
    from data.prepare.pair_tables import Request, read_requests

    if args.table is not None:
        return read_requests(args.table)
    pairs, unpaired = pair_files(args.visible, args.infrared, left_out=args.out)
    if unpaired:
        logger.warning("no partner for %d of the images, which are left out: %s", len(unpaired),
                       ", ".join(map(printable, unpaired)))
    return [Request(files, args.text, [files.name] * len(args.text)) for files in pairs]


def open_predictor(args: argparse.Namespace, device):
    """The `predictor.Predictor` for the flags."""
    from evaluation.inference import open_checkpoint
    from predictor import Predictor

    given = {name: getattr(args, name, None) for name in ("bert_tokenizer", "ck_bert", "img_size", "mha")}
    with naming("ckpt"):
        opened = open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, keep_memory=True,
                                 must_fuse=True, **given)
    return Predictor(opened.model, opened.tokenizer, opened.img_size, device, fuse_size=args.fuse_size,
                     tile=args.tile, show_progress=True)


def process_pair(predictor, request, stems: list[str], args: argparse.Namespace, matrix, make_room, records: list
                 ) -> None:
    """Read a pair of files, and for each sentence write its pictures and say what was found.

    Args:
        request: a `data.prepare.pair_tables.Request`.
        stems: names of the pictures, one for each sentence.
        matrix: (3, 3), by which the infrared image is warped; None: it is not.
        make_room: called before each picture is written.
        records: receives an entry of `predictions.json` for each sentence.
    Raises:
        InputError: whatever goes wrong with this pair, in one sentence.
    """
    from data.homography import warp
    from data.pictures import read_pair
    from evaluation.predictions import describe, record, write_prediction

    files = request.files
    try:
        pictures = read_pair(files.visible, files.infrared, args.max_pixels)
        for path, picture in zip((files.visible, files.infrared), pictures, strict=True):
            if picture.note:
                logger.info("%s: %s", printable(path), picture.note)
        visible, infrared = (picture.pixels for picture in pictures)
        if matrix is not None:
            infrared, covered = warp(infrared, matrix, visible)
            if covered < 1:
                logger.info("%s: warped; the %.1f %% of the picture that it does not cover are filled with the visible "
                            "image's luma", printable(files.infrared), 100 * (1 - covered))
        pair = predictor.encode_pair(visible, infrared)
        for stem, text in zip(stems, request.texts, strict=True):
            prediction = predictor.predict(pair, text)
            make_room()
            paths = write_prediction(pair, text, prediction, os.path.join(args.out, stem), args.save, args.format)
            records.append(record(files, text, prediction, paths))
            logger.info("%s, '%s': %s", printable(files.name), printable(text),
                        "\n".join([describe(prediction.mask), *(f"  {path}" for path in paths.values())]))
    except InputError:
        raise
    except Exception as error:  # decoders, NumPy and PyTorch raise many kinds; the other pairs can still be processed
        raise InputError(f"{printable(files.visible)} and {printable(files.infrared)} cannot be used "
                         f"({type(error).__name__}: {printable(first_line(error))})") from error


if __name__ == "__main__":
    run(main)
