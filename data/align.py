"""Estimate the matrix with which predict.py --align warps infrared images to the visible camera's view.

    python data/align.py visible.png infrared.png --out H.json --points points.csv
    python data/align.py visible.png infrared.png --out H.json --auto
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import UsageError, run
from utils.flags import ArgumentParser, refuse_existing


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Estimate the matrix with which predict.py --align warps infrared images to the visible camera's "
                    "view.")
    parser.add_argument("visible", metavar="VISIBLE", help="image file")
    parser.add_argument("infrared", metavar="INFRARED", help="image file of the same scene")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file for the matrix; a picture of both "
                        "images in a checkerboard is written beside it, FILE-checkerboard.png")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--points", metavar="FILE", help="at least four lines x,y,x,y: a pixel of the visible image and "
                     "the one of the infrared image that shows the same point")
    way.add_argument("--auto", action="store_true", help="from the edges in both images; for small shifts and turns")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for path in filter(None, (args.visible, args.infrared, args.points)):
        if not os.path.isfile(path):
            raise UsageError(f"there is no file {path!r}")
    if not args.out.lower().endswith(".json"):
        raise UsageError(f"--out: the name must end in .json, not {args.out!r}")
    board = f"{os.path.splitext(args.out)[0]}-checkerboard.png"
    refuse_existing([args.out, board], args.overwrite)

    import json

    from PIL import Image

    from data.homography import warp
    from data.pictures import read_pair
    from data.prepare.aligning import checkerboard, from_edges, from_points, read_points
    from utils.files import replacing

    visible, infrared = (picture.pixels for picture in read_pair(args.visible, args.infrared))
    found = from_points(read_points(args.points)) if args.points else from_edges(visible, infrared)
    warped = warp(infrared, found.matrix, visible)
    with replacing(board) as temporary:
        Image.fromarray(checkerboard(visible, warped.pixels)).save(temporary, "PNG")
    with replacing(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        method = "points" if args.points else "edges"
        json.dump({"matrix": found.matrix.tolist(), "method": method, **found.error}, file, indent=1)
    print(f"{found.said}; the infrared image covers {100 * warped.covered:.1f} % of the visible one")
    print(f"{args.out}\n{board}")


if __name__ == "__main__":
    run(main)
