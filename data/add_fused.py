"""Add pictures that any method has fused to a parquet file of the MM-RIS schema, as the column fused_image.

    python data/add_fused.py DATA.parquet --fused DIR --out OTHER.parquet
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import UsageError, run
from utils.flags import ArgumentParser, refuse_existing
from utils.locations import is_file


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Add fused pictures to a parquet file of the MM-RIS schema, as the column fused_image, on which "
                    "--prefusion_model given trains.")
    parser.add_argument("data", metavar="DATA", help="parquet file, or the URL of one")
    parser.add_argument("--fused", required=True, metavar="DIR", help="folder of the pictures, named "
                        "{image_name}_{index}, {image_name} or {index}")
    parser.add_argument("--out", required=True, metavar="PATH", help="parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if not is_file(args.data):
        raise UsageError(f"{args.data}: there is no such file")
    if not os.path.isdir(args.fused):
        raise UsageError(f"--fused: there is no folder {args.fused!r}")
    refuse_existing([args.out], args.overwrite)

    from data.prepare.adding import add_fused

    print("\n".join(add_fused(args.data, args.fused, args.out)))


if __name__ == "__main__":
    run(main)
