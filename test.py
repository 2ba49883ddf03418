"""Evaluate a RIS-FUSION checkpoint: metrics, and fused images, masks and overlays at original size."""
import argparse
import json
import logging
import os
import sys

from utils.errors import UsageError, run
from utils.flags import at_least, image_size, make_folder, require_existing, thresholds

BERT = "./bert/pretrained_weights/bert-base-uncased"
SHEET_ROWS = 8

log = logging.getLogger("test")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    stored = "default: what the checkpoint says, else"
    parser.add_argument("--ckpt", required=True, default=argparse.SUPPRESS, help="checkpoint to evaluate")
    parser.add_argument("--test_parquet", default="./data/mm_ris_test.parquet", help="parquet file, or folder of them")
    parser.add_argument("--out_dir", default="./your_output_dir", help="folder for everything written")
    parser.add_argument("--bert_tokenizer", default=argparse.SUPPRESS,
                        help=f"folder with BERT's vocabulary ({stored} {BERT})")
    parser.add_argument("--ck_bert", default=argparse.SUPPRESS,
                        help="folder with BERT's configuration; its weights are read only if the checkpoint has none "
                             f"({stored} {BERT})")
    parser.add_argument("--img_size", type=image_size, default=argparse.SUPPRESS,
                        help=f"side of the square images, pixels ({stored} 480)")
    parser.add_argument("--mha", default=argparse.SUPPRESS, help=f"heads of PWAM by stage ({stored} one each)")
    parser.add_argument("-b", "--batch-size", type=at_least(1), default=8, help="samples in a forward pass")
    parser.add_argument("-j", "--workers", type=at_least(0), default=4, help="processes that load data; 0: none")
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu; an index may follow, as in cuda:1")
    parser.add_argument("--iou_thresholds", type=thresholds, default="0.5,0.6,0.7,0.8,0.9", help="the t of precision@t")
    parser.add_argument("--shuffle_text", action="store_true",
                        help="swap the sentences between samples, to see how much the model listens to them")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of --shuffle_text")
    return parser


def resolve(args: argparse.Namespace, stored: dict) -> None:
    """Complete `args`: the command line first, then what the checkpoint stored if it can be used here, then defaults.

    Raises:
        UsageError: a folder is nowhere to be found.
    """
    for name in ("bert_tokenizer", "ck_bert"):
        if not hasattr(args, name):
            path = stored.get(name)
            setattr(args, name, path if isinstance(path, str) and os.path.isdir(path) else BERT)
            if not os.path.isdir(getattr(args, name)):
                raise UsageError(f"--{name}: neither the folder that the checkpoint names, {path!r}, nor the default, "
                                 f"{BERT!r}, is here; pass the flag")
    if not hasattr(args, "img_size"):
        args.img_size = stored.get("img_size") or 480
    if not hasattr(args, "mha"):
        args.mha = stored.get("mha") or ""
    require_existing(args, "bert_tokenizer", "ck_bert")


def main() -> None:
    args = build_parser().parse_args()
    require_existing(args, "ckpt", "test_parquet")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    # After the command line is known to be good: these take seconds.
    import torch

    from bert import Tokenizer, check_vocabulary
    from data import MMRISDataset, collate
    from engine import evaluate
    from models import build_from_checkpoint
    from utils import checkpoint
    from utils.device import select_device
    from utils.draw import SampleSheet
    from utils.metrics import table
    from utils.results import ResultWriter, set_aside, write_samples

    device = select_device(args.device)
    content = checkpoint.read(args.ckpt, "--ckpt")
    resolve(args, checkpoint.stored_args(content))
    make_folder(args.out_dir, "--out_dir")
    tokenizer = Tokenizer(args.bert_tokenizer)
    dataset = MMRISDataset(args.test_parquet, tokenizer, args.img_size, originals=True)
    if args.shuffle_text:
        dataset.shuffle_text(args.seed)
    try:
        model = build_from_checkpoint(content, args.ckpt, args.ck_bert, args.mha).to(device)
    except ValueError as error:
        raise UsageError(f"--mha: {error}") from error
    check_vocabulary(tokenizer, model.text_encoder)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch_size, num_workers=args.workers, collate_fn=collate)

    set_aside(args.out_dir, r"fusion|Binary|Overlay|GT|contact_sheet\.png|metrics\.json|per_sample\.csv")
    sheet = SampleSheet(dataset.questions, SHEET_ROWS)
    writer = ResultWriter(args.out_dir, dataset.names, dataset.indices)

    def keep(batch, output):
        sheet.add(batch, output)
        writer.add(batch, output)

    metrics, counts = evaluate(model, loader, device, args.iou_thresholds, keep)
    sheet.save(os.path.join(args.out_dir, "contact_sheet.png"))
    write_samples(os.path.join(args.out_dir, "per_sample.csv"), dataset, counts)
    with open(os.path.join(args.out_dir, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump(metrics, file, indent=1)
    print(f"{args.test_parquet}, sentences swapped between samples" if args.shuffle_text else args.test_parquet)
    print(table(metrics))
    print(f"in {args.out_dir}: metrics.json, per_sample.csv, contact_sheet.png, fusion/, Binary/, Overlay/, GT/")


if __name__ == "__main__":
    run(main)
