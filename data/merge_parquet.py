"""Merge parquet files into one with small row groups, or distribute their images to a training and a validation set.

    python data/merge_parquet.py                                  # part1 and part2 of the MM-RIS training set
    python data/merge_parquet.py --split 0.95,0.05                # likewise, and hold out images for validation
    python data/merge_parquet.py PART [PART ...] --out FILE
    python data/merge_parquet.py PART [PART ...] --out FOLDER --split TRAIN,VAL[,TEST]

A single PART is rewritten: a whole row group is read for each sample, so shuffled training needs small ones.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import run
from utils.flags import ArgumentParser, proportions, refuse_existing, seed, split_files

FOLDER = "./data"
DEFAULT_PARTS = [f"{FOLDER}/mm_ris_train_part1.parquet", f"{FOLDER}/mm_ris_train_part2.parquet"]
DEFAULT_OUT = f"{FOLDER}/mm_ris_train.parquet"


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Merge MM-RIS parquet files into one with small row groups, which shuffled training reads fast, or "
                    "distribute their images to several.",
        epilog=f"Without PART: {' and '.join(DEFAULT_PARTS)} into {DEFAULT_OUT}, with --split into {FOLDER}/.")
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help="parquet files by path or URL, with the same columns, in order "
                        f"(default: {' and '.join(DEFAULT_PARTS)})")
    parser.add_argument("--out", metavar="PATH", help="parquet file to write; with --split, a folder for "
                        f"mm_ris_train.parquet and so on; needed when a PART is given (default: {DEFAULT_OUT}, with "
                        f"--split {FOLDER})")
    parser.add_argument("--split", type=proportions, metavar="TRAIN,VAL[,TEST]",
                        help="shares of the images, as in 0.95,0.05; no image is in two of the files")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--seed", type=seed, default=0, metavar="K",
                        help="seed of --split (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.parts and not args.out:
        parser.error("--out PATH is needed when parts are given")
    if args.out and not args.parts:
        parser.error("--out is given, but no part to merge")
    parts, outs, shares = args.parts or DEFAULT_PARTS, [args.out or DEFAULT_OUT], [1.0]
    if args.split:
        outs, shares = split_files(args.out or FOLDER), args.split
    refuse_existing([out for out, share in zip(outs, shares, strict=True) if share], args.overwrite)

    from data.prepare.merging import merge

    print("\n".join(merge(parts, outs, shares, args.seed)))


if __name__ == "__main__":
    run(main)
