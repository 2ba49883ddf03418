"""Train RIS-FUSION: text encoder, fuser and LAVT together. A plain run is the published recipe."""
import argparse
import os

from utils.errors import run
from utils.flags import (
    BERT,
    ArgumentParser,
    Ignored,
    at_least,
    find_resume,
    heads_by_stage,
    image_size,
    require_existing,
)

SWIN = "./pretrained_weights/swin_base_patch4_window12_384_22k.pth"
LAVT_ONE = ("./pretrained_weights/lavt_one_8_cards_ImgNet22KPre_swin-base-window12_refcoco+_adamw_"
            "b32lr0.00005wd1e-2_E40.pth")
RATES = "use {0}_seg for LAVT and BERT, and {0}_pf for the fuser"
AUTHORS_FLAGS = {"--model": "leave it out, the segmenter is always LAVT; its size is --swin_type",
                 "--lr": RATES.format("--lr"), "--wd": RATES.format("--wd"), "--weight_decay": RATES.format("--wd")}
LONGEST_ID = 200  # bytes; file names end at 255


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False,
        elsewhere=AUTHORS_FLAGS)
    # Products and sums of numbers within these bounds can be represented.
    rate, weight = at_least(0, float, most=1e30), at_least(0, float, most=1e9)
    count, many = at_least(1, most=10**9), at_least(0, most=10**9)
    minutes = at_least(0, float, most=10**6)
    # torch.distributed.launch passes it; the environment says the same
    parser.add_argument("--local-rank", action=Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    data = parser.add_argument_group("data")
    data.add_argument("--train_parquet", default="./data/mm_ris_train.parquet", help="parquet file, or folder of them")
    data.add_argument("--val_parquet", default="./data/mm_ris_val.parquet", help="likewise, for validation")
    data.add_argument("--bad_rows", choices=["stop", "skip"], default="stop",
                      help="rows that cannot be used: stop at the first, or skip them and list them in the log")
    data.add_argument("--img_size", type=image_size, default=480, help="side of the square images, pixels, above 32")
    data.add_argument("-b", "--batch-size", type=count, default=16, help="samples in a step of each process")
    data.add_argument("-j", "--workers", type=at_least(0, most=1024), default=16,
                      help="processes that load data; 0: none")
    data.add_argument("--pin_mem", action="store_true", help="load batches into page-locked memory, for a faster copy")

    model = parser.add_argument_group("model")
    model.add_argument("--prefusion_model", choices=["unet_fuser"], default="unet_fuser", help="fusion network")
    model.add_argument("--prefusion_base_ch", type=at_least(1, most=4096), default=32, help="fuser's width")
    model.add_argument("--swin_type", choices=["micro", "tiny", "small", "base", "large"], default="base")
    model.add_argument("--window12", action="store_true",
                       help="attention windows of 12, also implied by a Swin file with window12 in its name; else 7")
    model.add_argument("--mha", type=heads_by_stage, default="",
                       help="attention heads of PWAM by stage, as in 4-4-4-4; empty: one each")
    model.add_argument("--fusion_drop", type=rate, default=0.0, help="dropout rate in PWAM")

    start = parser.add_argument_group("weights to start from (an empty string: random)")
    start.add_argument("--init_from", default="", metavar="CHECKPOINT",
                       help="all networks of a checkpoint, for fine-tuning; Swin and LAVT files are not read then")
    start.add_argument("--pretrained_swin_weights", default=SWIN, help="Swin's ImageNet weights")
    start.add_argument("--bert_tokenizer", default=BERT, help="folder with BERT's vocabulary")
    start.add_argument("--ck_bert", default=BERT, help="folder with BERT's configuration and weights")
    start.add_argument("--init_from_lavt_one", default=LAVT_ONE, help="LAVT checkpoint, for backbone and BERT")
    start.add_argument("--load_lavt_head", action="store_true", help="take its classifier too")
    start.add_argument("--ck_prefusion", default="", help="fuser weights: a bare state dict or a checkpoint of ours")

    loss = parser.add_argument_group("losses")
    loss.add_argument("--seg_loss", choices=["ce", "dice", "bce_area"], default="ce", help="segmentation loss")
    loss.add_argument("--lambda_prefusion", type=weight, default=3.0, help="weight of the fusion loss")
    for name, default, what in (("ssim_vis", 0.5, "1 − SSIM to the visible image"),
                                ("ssim_ir", 0.0, "1 − SSIM to the infrared image"),
                                ("mse_vis", 0.5, "squared error to the visible image"),
                                ("mse_ir", 2.0, "squared error to the infrared image"),
                                ("sobel_vis", 0.0, "edge distance to the visible image"),
                                ("sobel_ir", 1.0, "edge distance to the infrared image"),
                                ("grad", 1.0, "edge distance to the stronger edge of the two")):
        loss.add_argument(f"--w_{name}", type=weight, default=default, help=f"weight of the {what}")
    loss.add_argument("--ssim_window", type=at_least(3, most=1001), default=11,
                      help="side of SSIM's window, pixels, odd")
    loss.add_argument("--ssim_sigma", type=at_least(0.1, float, most=1000), default=1.5,
                      help="standard deviation of its Gaussian, pixels")
    loss.add_argument("--ssim_edges", choices=["valid", "zero"], default="valid",
                      help="windows inside the image only, or around each pixel, padded with zeros, as the authors' "
                           "public scripts compute it")

    optim = parser.add_argument_group("optimization (AdamW, polynomial decay to 0)")
    optim.add_argument("--epochs", type=count, default=10)
    optim.add_argument("--lr_seg", type=rate, default=5e-5, help="learning rate of LAVT and BERT")
    optim.add_argument("--wd_seg", type=rate, default=1e-2, help="weight decay of LAVT and BERT")
    optim.add_argument("--lr_pf", type=rate, default=1e-4, help="learning rate of the fuser")
    optim.add_argument("--wd_pf", type=rate, default=1e-2, help="weight decay of the fuser")
    optim.add_argument("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    optim.add_argument("--grad_clip", type=rate, default=0.0, help="largest norm of the gradients; 0: no limit")
    optim.add_argument("--max_bad_steps", type=count, default=10,
                       help="steps in a row without a finite loss and gradient that end the run; fewer are skipped")
    optim.add_argument("--model-ema-decay", type=rate, default=0.0,
                       help="validate and store weights averaged over the steps with this decay, as in 0.999; 0: not")
    optim.add_argument("--seed", type=at_least(0, most=2**63 - 1), default=0)

    part = parser.add_argument_group("training a part")
    part.add_argument("--freeze_bert", action="store_true", help="leave the text encoder as it is")
    part.add_argument("--freeze_backbone", action="store_true", help="leave LAVT's backbone, PWAM included, as it is")
    part.add_argument("--train_fuser_only", action="store_true",
                      help="the fuser by the fusion loss alone, without LAVT; the data need no masks")
    part.add_argument("--eval_only", action="store_true", help="evaluate the checkpoint of --resume, train nothing")

    run_on = parser.add_argument_group("device, precision and memory")
    run_on.add_argument("--device", default="auto", help="auto, cuda, npu or cpu; an index may follow, as in cuda:1")
    run_on.add_argument("--amp", action="store_true", help="run the networks in a 16-bit type, the losses in float32")
    run_on.add_argument("--amp-dtype", choices=["bfloat16", "float16"], default="bfloat16", help="that type")
    run_on.add_argument("--grad-accum-steps", type=count, default=1, help="batches that make up one step")
    run_on.add_argument("--grad-checkpointing", action="store_true",
                        help="activation checkpointing of Swin's blocks and the fuser: less memory, more time")
    run_on.add_argument("--channels-last", action="store_true", help="store images as NHWC, which can be faster")
    run_on.add_argument("--torchcompile", action="store_true",
                        help="train with torch.compile; the first step takes minutes")
    run_on.add_argument("--tf32", action="store_true", help="allow TensorFloat-32 in float32 matrix products")
    run_on.add_argument("--dist-timeout", type=at_least(0.01, float, most=10**6), default=10.0,
                        help="minutes until a process that does not answer ends a job of several")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="./ckpts/risfusion", help="folder for checkpoints, log and curves")
    output.add_argument("--model_id", default="lavt", help="the best checkpoint is model_best_<model_id>.pth")
    output.add_argument("--eval_vis_dir", default="./eval_vis",
                        help="folder for pictures of the first validation samples; empty: none")
    output.add_argument("--print-freq", type=count, default=10, help="steps between two readings of the losses")
    output.add_argument("--resume", default="", metavar="PATH",
                        help="resume the run of this checkpoint; auto: last.pth in --output-dir, if it is there")
    output.add_argument("--save_every_minutes", type=minutes, default=10.0,
                        help="time between two saves of last.pth within an epoch; 0: after every step")
    output.add_argument("--keep", type=many, default=0,
                        help="keep the checkpoints of so many latest epochs, besides the best and the last")
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args()
    for flag, wrong, sentence in contradictions(args):
        if wrong:
            parser.error(f"argument --{flag}: {sentence}")
    args.resume = find_resume(args.resume, args.output_dir)
    if args.eval_only and not args.resume:
        parser.error(f"argument --resume: there is no last.pth in {args.output_dir!r}")
    needed = ["train_parquet"] * (not args.eval_only) + ["val_parquet", "bert_tokenizer", "ck_bert"]
    if args.init_from and not args.resume:
        needed += ["init_from"]
    elif not args.resume:  # a resumed run has its weights in the checkpoint
        needed += ["init_from_lavt_one", "ck_prefusion"] + ["pretrained_swin_weights"] * (not args.train_fuser_only)
    require_existing(args, *needed)
    return args


def contradictions(args: argparse.Namespace) -> list[tuple[str, bool, str]]:
    """What single flags cannot show: (flag, whether it is wrong, what is wrong with it)."""
    combined = [flag for flag, used in (
        ("--load_lavt_head", args.load_lavt_head), ("--ck_prefusion", args.ck_prefusion),
        ("--init_from_lavt_one", args.init_from_lavt_one not in ("", LAVT_ONE)),
        ("--pretrained_swin_weights", args.pretrained_swin_weights not in ("", SWIN))) if used]
    return [
        ("model_id", os.path.basename(args.model_id) != args.model_id or not args.model_id or "\0" in args.model_id,
         f"{args.model_id!r} cannot be part of a file name"),
        ("model_id", len(os.fsencode(args.model_id)) > LONGEST_ID,
         f"too long for a file name; take at most {LONGEST_ID} characters"),
        ("fusion_drop", args.fusion_drop >= 1, f"must be below 1, not {args.fusion_drop}"),
        ("model-ema-decay", args.model_ema_decay >= 1, f"must be below 1, not {args.model_ema_decay}"),
        ("ssim_window", args.ssim_window % 2 == 0, f"must be odd, not {args.ssim_window}"),
        ("ssim_window", args.ssim_edges == "valid" and args.ssim_window > args.img_size,
         "no such window fits into the images; take --ssim_edges zero or a smaller one"),
        ("init_from", bool(args.init_from and combined),
         f"leave out {', '.join(combined)}; all weights come from the checkpoint"),
        ("load_lavt_head", args.load_lavt_head and not args.init_from_lavt_one,
         "there is no classifier to take without --init_from_lavt_one"),
        ("bert_tokenizer", not args.bert_tokenizer, "a vocabulary cannot be random; name a folder"),
        ("eval_only", args.eval_only and not args.resume, "name the checkpoint to evaluate with --resume"),
        ("train_fuser_only",
         args.train_fuser_only and (args.freeze_bert or args.freeze_backbone or args.load_lavt_head),
         "leave out --freeze_bert, --freeze_backbone and --load_lavt_head; BERT stays as it is anyway, and there is no "
         "LAVT"),
        ("lambda_prefusion", args.train_fuser_only and not args.lambda_prefusion,
         "at 0 there is nothing for --train_fuser_only to learn from"),
        ("torchcompile", args.torchcompile and args.grad_checkpointing, "cannot be combined with --grad-checkpointing"),
    ]


def main() -> None:
    args = parse_args()

    import trainer  # after the command line is known to be good: its imports take seconds

    trainer.run_job(args)


if __name__ == "__main__":
    run(main)
