"""Make parquet files of the MM-RIS schema from folders of images and a table of expressions.

    python data/build_parquet.py TABLE --out FILE.parquet
    python data/build_parquet.py TABLE --out FOLDER --split 0.8,0.1,0.1

TABLE is CSV or JSON with `image`, `expression` and `mask` (a file), `polygon` or `rle`, a COCO file, or a folder of
LabelMe's files; images lie beside it in visible/ and infrared/, masks in masks/, matched by name.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import UsageError, run
from utils.flags import ArgumentParser, proportions, refuse_existing, seed, split_files

FOLDERS = ("visible", "infrared", "masks")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Make parquet files of the MM-RIS schema from folders of images and a table of expressions.")
    parser.add_argument("table", metavar="TABLE", help="CSV, TSV, JSON (a list of objects) or JSON lines with image, "
                        "expression and, unless a file in masks/ has the image's name, mask, polygon or rle; or "
                        "COCO's annotations, or a folder of LabelMe's files")
    parser.add_argument("--out", required=True, metavar="PATH", help="parquet file to write; with --split, a folder "
                        "for mm_ris_train.parquet, mm_ris_val.parquet and mm_ris_test.parquet")
    for folder, what in zip(FOLDERS, ("visible images", "infrared images", "masks"), strict=True):
        parser.add_argument(f"--{folder}", metavar="DIR",
                            help=f"folder of the {what} (default: {folder}/ beside TABLE)")
    parser.add_argument("--fused", metavar="DIR", help="folder of fused pictures by any method, one for each image or "
                        "entry, for the column fused_image (default: no such column)")
    parser.add_argument("--split", type=proportions, metavar="TRAIN,VAL,TEST",
                        help="shares of the images, as in 0.8,0.1,0.1; no image is in two of the files")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--seed", type=seed, default=0, metavar="K",
                        help="seed of --split (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if not os.path.isfile(args.table) and not os.path.isdir(args.table):
        raise UsageError(f"{args.table}: there is no such table")
    beside = os.path.dirname(os.path.normpath(args.table))
    folders = tuple(getattr(args, folder) or os.path.join(beside, folder) for folder in FOLDERS)
    for flag, folder in zip(FOLDERS[:2], folders[:2], strict=True):
        if not os.path.isdir(folder):
            raise UsageError(f"--{flag}: there is no folder {folder!r}")
    for flag in ("masks", "fused"):
        if getattr(args, flag) is not None and not os.path.isdir(getattr(args, flag)):
            raise UsageError(f"--{flag}: there is no folder {getattr(args, flag)!r}")
    outs = split_files(args.out) if args.split else [args.out]
    refuse_existing(outs, args.overwrite)

    from data.prepare.building import build

    lines = build(args.table, folders, outs, args.split or [1.0], args.seed, args.fused)
    for out, share in zip(outs, args.split or [1.0], strict=True):
        if not share and os.path.exists(out):
            lines.append(f"note: {out} was there before and is not part of this split")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
