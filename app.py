"""A page in the browser: two pictures and a sentence in, the fused picture and the object out."""
import argparse
import functools
import importlib.util
import logging
import os

from utils.errors import InputError, UsageError, naming, run
from utils.flags import (
    ArgumentParser,
    add_accuracy_flags,
    add_checkpoint_flags,
    add_device_flag,
    add_fusion_size_flags,
    at_least,
    checkpoint_flags,
    require_existing,
)

LOCAL = ("127.0.0.1", "::1", "localhost")

logger = logging.getLogger("app")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("--ckpt", required=True, default=argparse.SUPPRESS, help="checkpoint to use")
    add_checkpoint_flags(parser)
    add_device_flag(parser)
    add_accuracy_flags(parser)
    add_fusion_size_flags(parser, "native")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1",
                        help="address to listen at; the default can be reached from this machine alone, 0.0.0.0 from "
                             "every machine of the network, without a password")
    server.add_argument("--port", type=at_least(0, most=65535), default=7860, help="0: any that is free")
    server.add_argument("--max_pixels", type=at_least(1), default=25_000_000,
                        help="larger pictures are refused without being decoded")
    server.add_argument("--max_mb", type=at_least(1), default=100, help="larger files are refused")
    server.add_argument("--max_waiting", type=at_least(1), default=8,
                        help="requests that may wait while another is answered; further ones are refused")
    server.add_argument("--memory_mb", type=at_least(0), default=2000,
                        help="for the latest pairs and results, which are kept in memory")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    require_existing(args, "ckpt")
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is not installed: pip install -r requirements-app.txt")
    if not args.host.strip():
        raise UsageError("--host: the address is empty")

    # After the command line is known to be good: these take seconds.
    from page.server import bind, temporary_folder

    with bind(args.host, args.port) as listening, temporary_folder() as folder:
        start(args, listening, folder)


def start(args: argparse.Namespace, listening, folder: str) -> None:
    """Load the model and serve the page until the program is told to end.

    Args:
        listening: of `page.server.bind`.
        folder: of `page.server.temporary_folder`.
    """
    from evaluation.inference import open_checkpoint
    from page.answers import SharedPredictor
    from page.examples import write_examples
    from page.layout import CSS_FILE, THEME, Page, build_page
    from page.results import remove_results
    from page.server import address, serve
    from predictor import Predictor
    from utils.device import select_device
    from utils.streams import log_to_stdout

    log_to_stdout()
    device = select_device(args.device)
    with naming("ckpt"):
        opened = open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, must_fuse=True,
                                 **checkpoint_flags(args))
    sizes = dict.fromkeys((args.fuse_size, "native", "network"))
    predictors = {str(size): Predictor(opened.model, opened.tokenizer, opened.img_size, device, fuse_size=size,
                                       tile=args.tile) for size in sizes}
    shared = SharedPredictor(predictors, args.max_pixels, args.memory_mb * 10**6,
                             functools.partial(remove_results, folder))
    labels = {"native": "as the visible picture", "network": f"as in training, {opened.img_size} px"}
    name = "/".join(os.path.abspath(args.ckpt).split(os.sep)[-2:])
    about = (f"Model: {name}, on {device}. Pictures of at most {args.max_pixels / 1e6:g} megapixels and "
             f"{args.max_mb} MB; visible and infrared picture aligned, the infrared one white-hot.")
    blocks = build_page(Page(shared, folder, args.ckpt), write_examples(f"{folder}/examples", opened.img_size),
                        [(labels.get(size, f"longer side {size} px"), size) for size in predictors], about,
                        args.max_waiting)
    logger.info("%s  (Ctrl-C ends the page)", address(listening))
    if args.host not in LOCAL:
        logger.warning("other machines can reach this page, without a password")
    serve(blocks, listening, folder, args.max_mb * 10**6, theme=THEME, css_paths=[CSS_FILE])


if __name__ == "__main__":
    run(main)
