"""Write a checkpoint in a form for other programs: a folder for the Hugging Face hub, or a graph for other runtimes."""
import argparse

from utils.errors import run
from utils.flags import ArgumentParser, add_checkpoint_flags, require_existing


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    needed = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--ckpt", **needed, help="checkpoint to export, a file or a folder of this script")
    parser.add_argument("--to", **needed, metavar="DIR", help="folder to write")
    parser.add_argument("--format", choices=("safetensors", "onnx", "pt2"), default="safetensors",
                        help="safetensors: weights, for test.py, predict.py, the Predictor and the hub; onnx: a graph "
                             "for ONNX Runtime; pt2: one for torch.export.load")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
                        help="in which safetensors stores matrices and kernels; 16 bits take half the room")
    parser.add_argument("--metrics", default="", metavar="FILE",
                        help="metrics.json of test.py, for the model card")
    parser.add_argument("--license", default="", metavar="NAME",
                        help="licence of the weights by the hub's name for it, as in cc-by-nc-4.0, for the model card")
    parser.add_argument("--check_parquet", default="", metavar="PATH",
                        help="data whose first rows an exported graph is checked on (default: synthetic scenes)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_checkpoint_flags(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    require_existing(args, "ckpt", *(name for name in ("metrics", "check_parquet") if getattr(args, name)))
    if args.format != "safetensors" and args.dtype != "float32":
        parser.error(f"argument --dtype: {args.format} is written in float32; leave it out")
    if args.format == "safetensors" and args.check_parquet:
        parser.error("argument --check_parquet: only a graph is checked, onnx or pt2; leave it out")

    from exporting.job import export  # after the command line is known to be good: its imports take seconds

    export(args)


if __name__ == "__main__":
    run(main)
