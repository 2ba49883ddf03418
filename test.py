"""Evaluate a RIS-FUSION checkpoint: metrics, and fused images, masks and overlays at original size."""
import argparse
import os

from utils.errors import run
from utils.flags import (
    ArgumentParser,
    Ignored,
    add_accuracy_flags,
    add_checkpoint_flags,
    add_device_flag,
    add_fusion_size_flags,
    at_least,
    require_existing,
    seed,
    thresholds,
)

READ_OFF = "leave it out, the checkpoint's tensors show it"
AUTHORS_FLAGS = {"--model": "leave it out, the segmenter is always LAVT",
                 "--prefusion_model": "leave it out, the checkpoint says it",
                 "--prefusion_base_ch": READ_OFF, "--pretrained_swin_weights": READ_OFF, "--swin_type": READ_OFF,
                 "--window12": READ_OFF}


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False,
        elsewhere=AUTHORS_FLAGS)
    # torch.distributed.launch passes it; the environment says the same
    parser.add_argument("--local-rank", action=Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--ckpt", required=True, default=argparse.SUPPRESS, help="checkpoint to evaluate")
    parser.add_argument("--test_parquet", default="./data/mm_ris_test.parquet",
                        help="a parquet file, or a folder of them, by path or URL")
    parser.add_argument("--fused_images", default="", metavar="DIR",
                        help="folder of fused pictures by any method, which the segmenter sees and --fusion_metrics "
                             "measures instead of what the checkpoint's own fuser would make; named "
                             "{image_name}_{index}, {image_name} or {index}; empty: none")
    parser.add_argument("--out_dir", default="./your_output_dir", help="folder for all results")
    add_checkpoint_flags(parser)
    parser.add_argument("-b", "--batch-size", type=at_least(1), default=8, help="samples per forward pass")
    parser.add_argument("-j", "--workers", type=at_least(0), default=4,
                        help="worker processes that load data; 0: load in this process")
    add_device_flag(parser)
    parser.add_argument("--iou_thresholds", type=thresholds, default="0.5,0.6,0.7,0.8,0.9",
                        help="thresholds t of precision@t, separated by commas")
    parser.add_argument("--fusion_metrics", action="store_true",
                        help="measure EN, SD, SF, AG, MI, SCD, CC, Qabf, VIF and SSIM at original size, of the fused "
                             "images and of the average and maximum of the sources")
    parser.add_argument("--text_ablation", action="store_true",
                        help="also run each sample with another sample's sentence and with an empty one, and measure "
                             "how far mask, fused image and the object's contrast depend on it")
    parser.add_argument("--shuffle_text", action="store_true",
                        help="swap the sentences between samples")
    add_accuracy_flags(parser)
    add_fusion_size_flags(parser, "network")
    parser.add_argument("--torchcompile", action="store_true",
                        help="compile the model with torch.compile, for one batch size; the first batch takes minutes")
    parser.add_argument("--save", choices=["none", "masks", "all"], default="all",
                        help="pictures to write for each sample; masks: Binary/ alone")
    parser.add_argument("--limit", type=at_least(0), default=0, metavar="N",
                        help="evaluate only the first N rows; 0: all")
    parser.add_argument("--bad_rows", choices=["stop", "skip"], default="stop",
                        help="unusable rows: stop at the first, or skip them and list them")
    parser.add_argument("--dist-timeout", type=at_least(0.01, float), default=10.0,
                        help="minutes until a process that does not answer ends a distributed job")
    parser.add_argument("--seed", type=seed, default=0,
                        help="seed of the swapped sentences and of the bootstrap")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.text_ablation and args.shuffle_text:
        parser.error("argument --text_ablation: it swaps the sentences itself; leave out --shuffle_text")
    require_existing(args, "ckpt", "test_parquet")
    if args.fused_images and not os.path.isdir(args.fused_images):
        parser.error(f"argument --fused_images: there is no folder {args.fused_images!r}")
    if args.fused_images and args.fuse_size != "network":
        parser.error("argument --fuse_size: with --fused_images nothing is fused; leave it out")

    import evaluator  # after the command line is known to be good: its imports take seconds

    evaluator.run_job(args)


if __name__ == "__main__":
    run(main)
