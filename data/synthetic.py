"""Write a small data set of synthetic scenes in the MM-RIS schema, and a tiny BERT to read its sentences.

    python data/synthetic.py --out DIR --train 1500 --val 128 --test 128 --size 96 --seed 0

makes DIR/mm_ris_train.parquet, mm_ris_val.parquet, mm_ris_test.parquet and DIR/bert/. Same arguments, same bytes.
"""
import argparse
import io
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from bert.tiny import write_tiny_bert
from data.columns import SCHEMA
from data.parquet_rows import ROWS_PER_GROUP
from data.prepare.scenes import draw_infrared, draw_mask, draw_visible, make_scene, pick_expression, sentence
from utils.errors import run
from utils.files import replacing
from utils.flags import SPLITS, ArgumentParser, at_least, make_folder, refuse_existing, seed
from utils.progress import progress_bar
from utils.text import counted


def make_rows(split: str, count: int, size: int, seed: int):
    """Yield `count` rows of the schema; one to three of them share a scene, each about another of its objects."""
    index, number = 0, 0
    while index < count:
        scene_seed = (seed, SPLITS.index(split), number)
        scene = make_scene(scene_seed)
        rng = np.random.default_rng((*scene_seed, 3))
        images = {
            "image_name": f"{split}_{number:05d}.jpg",
            "visible_image": encode(draw_visible(scene, size), "JPEG", quality=95, subsampling=0),
            "infrared_image": encode(draw_infrared(scene, size), "PNG")}
        for target in rng.permutation(len(scene.objects))[: rng.integers(1, 4)]:
            attributes = pick_expression(scene, target, rng)
            if attributes is None or index == count:
                continue
            mask = io.BytesIO()
            np.save(mask, draw_mask(scene.objects[target], size), allow_pickle=False)
            yield images | {"index": index, "question": sentence(attributes), "segmentation": mask.getvalue()}
            index += 1
        number += 1


def encode(image: np.ndarray, kind: str, **options) -> bytes:
    """`image`, (H, W, 3) or (H, W) uint8, as the bytes of a PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_split(path: str, split: str, count: int, size: int, seed: int) -> list[str]:
    """Write one parquet file; return its sentences."""
    sentences, group = [], []
    rows = progress_bar(make_rows(split, count, size, seed), total=count, desc=os.path.basename(path), unit="row")
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for row in rows:
            sentences.append(row["question"])
            group.append(row)
            if len(group) == ROWS_PER_GROUP or len(sentences) == count:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group = []
    return sentences


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write synthetic infrared-visible scenes with referring expressions in the MM-RIS schema, and a "
                    "tiny BERT folder for them.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, default=argparse.SUPPRESS, metavar="DIR",
                        help="folder to write to; created if missing")
    for split, rows in zip(SPLITS, (1500, 128, 128), strict=True):
        parser.add_argument(f"--{split}", type=at_least(1, most=10**7), default=rows, metavar="N",
                            help=f"rows in mm_ris_{split}.parquet")
    parser.add_argument("--size", type=at_least(48, most=4096), default=96, metavar="S",
                        help="side of the images, pixels")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--seed", type=seed, default=0, metavar="K",
                        help="seed; the same seed gives the same bytes")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    make_folder(args.out, "--out")
    sentences, folder = [], os.path.join(args.out, "bert")
    paths = [os.path.join(args.out, f"mm_ris_{split}.parquet") for split in SPLITS]
    refuse_existing([*paths, folder], args.overwrite)
    for split, path in zip(SPLITS, paths, strict=True):
        count = getattr(args, split)
        sentences += write_split(path, split, count, args.size, args.seed)
        print(f"wrote {path}: {counted(count, 'row')}")
    write_tiny_bert(folder, sentences, args.seed, dropout=0.0)  # a few epochs from random weights: nothing to overfit
    print(f"wrote {folder}: a tiny BERT with random weights")


if __name__ == "__main__":
    run(main)
