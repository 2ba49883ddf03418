"""Train RIS-FUSION: text encoder, fuser and LAVT together. A plain run is the published recipe."""
import argparse
import os

from utils.errors import run
from utils.flags import (
    BERT,
    FUSION_METHODS,
    ArgumentParser,
    Ignored,
    add_device_flag,
    at_least,
    find_resume,
    heads_by_stage,
    image_size,
    require_existing,
    seed,
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
    rate, count, weight = at_least(0, float), at_least(1), at_least(0, float, most=1e9)
    # torch.distributed.launch passes it; the environment says the same
    parser.add_argument("--local-rank", action=Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    data = parser.add_argument_group("data")
    data.add_argument("--train_parquet", default="./data/mm_ris_train.parquet",
                      help="training set: a parquet file, or a folder of them, by path or URL")
    data.add_argument("--val_parquet", default="./data/mm_ris_val.parquet", help="validation set, likewise")
    data.add_argument("--bad_rows", choices=["stop", "skip"], default="stop",
                      help="unusable rows: stop at the first, or skip them and list them in log.jsonl")
    data.add_argument("--cache_dir", default="", metavar="DIR",
                      help="folder for the copy in small row groups that is made once of a training set by URL, and of "
                           "training files with large ones; empty: beside the file, and none of a URL")
    data.add_argument("--remove_cache", action="store_true", help="delete that copy when training has finished")
    data.add_argument("--img_size", type=image_size, default=480,
                      help="side of the square network input in pixels; above 32")
    data.add_argument("-b", "--batch-size", type=count, default=16, help="samples per batch and process")
    data.add_argument("-j", "--workers", type=at_least(0, most=1024), default=16,
                      help="worker processes that load data, per training process; 0: load in the training process")
    data.add_argument("--pin_mem", action="store_true",
                      help="load batches into page-locked memory, for a faster copy to a GPU")

    model = parser.add_argument_group("model")
    model.add_argument("--prefusion_model", choices=FUSION_METHODS, default="unet_fuser",
                       help="how images are fused: by the network of the paper; or, without parameters, the luma of "
                            "both averaged or the larger one, with the visible image's colour; the visible image "
                            "alone; the infrared one as grey; or given: by any method, in the data's column "
                            "fused_image")
    model.add_argument("--prefusion_base_ch", type=at_least(1, most=1024), default=32,
                       help="width c of the fuser, whose levels have c, 2c, 4c and 8c channels")
    model.add_argument("--swin_type", choices=["micro", "tiny", "small", "base", "large"], default="base",
                       help="size of the Swin Transformer; micro (width 32, depths 2-2-2-2) is for quick trials")
    model.add_argument("--window12", action="store_true",
                       help="attention windows of 12 instead of 7; implied if the name of the Swin file contains "
                            "window12")
    model.add_argument("--mha", type=heads_by_stage, default="",
                       help="attention heads of PWAM per stage, as in 4-4-4-4; empty: one head per stage")
    model.add_argument("--fusion_drop", type=rate, default=0.0, help="dropout rate in PWAM")

    start = parser.add_argument_group("initial weights (an empty string: random)")
    start.add_argument("--init_from", default="", metavar="CHECKPOINT",
                       help="checkpoint that all networks start from, for fine-tuning; Swin and LAVT files are not "
                            "read then")
    start.add_argument("--pretrained_swin_weights", default=SWIN,
                       help="Swin's ImageNet weights; bias tables of another window size are resized")
    start.add_argument("--bert_tokenizer", default=BERT, help="folder with BERT's vocabulary")
    start.add_argument("--ck_bert", default=BERT, help="folder with BERT's configuration and weights")
    start.add_argument("--init_from_lavt_one", default=LAVT_ONE,
                       help="lavt_one checkpoint from which backbone and BERT start")
    start.add_argument("--load_lavt_head", action="store_true", help="take the classifier of --init_from_lavt_one, too")
    start.add_argument("--ck_prefusion", default="",
                       help="fuser weights: a plain state dict, or any checkpoint of this project")

    loss = parser.add_argument_group("losses")
    loss.add_argument("--seg_loss", choices=["ce", "dice", "bce_area"], default="ce",
                      help="segmentation loss: weighted cross-entropy, Dice of object and background, or binary "
                           "cross-entropy in which object and background count alike whatever their areas")
    loss.add_argument("--lambda_prefusion", type=weight, default=3.0, help="weight of the fusion loss")
    for name, default, what in (("ssim_vis", 0.5, "1 − SSIM to the visible image"),
                                ("ssim_ir", 0.0, "1 − SSIM to the infrared image"),
                                ("mse_vis", 0.5, "the squared error to the visible image"),
                                ("mse_ir", 2.0, "the squared error to the infrared image"),
                                ("sobel_vis", 0.0, "the edge distance to the visible image"),
                                ("sobel_ir", 1.0, "the edge distance to the infrared image"),
                                ("grad", 1.0, "the edge distance to the stronger edge of the two")):
        loss.add_argument(f"--w_{name}", type=weight, default=default, help=f"weight of {what}")
    loss.add_argument("--w_focus", type=weight, default=0.0,
                      help="weight of a term that is not the paper's: it makes the referred object stand out in the "
                           "fused image; 0: leave it out")
    loss.add_argument("--ssim_window", type=at_least(3, most=1001), default=11,
                      help="side of SSIM's window in pixels; odd")
    loss.add_argument("--ssim_sigma", type=at_least(0.1, float, most=1000), default=1.5,
                      help="standard deviation of the Gaussian in SSIM's window, in pixels")
    loss.add_argument("--ssim_edges", choices=["valid", "zero"], default="valid",
                      help="valid: SSIM over the windows inside the image; zero: over a window around each pixel, the "
                           "image padded with zeros, as in the authors' public scripts")

    optim = parser.add_argument_group("optimization (AdamW, polynomial decay to 0)")
    optim.add_argument("--epochs", type=count, default=10, help="passes over the training set")
    optim.add_argument("--lr_seg", type=rate, default=5e-5, help="learning rate of LAVT and BERT")
    optim.add_argument("--wd_seg", type=rate, default=1e-2, help="weight decay of LAVT and BERT")
    optim.add_argument("--lr_pf", type=rate, default=1e-4, help="learning rate of the fuser")
    optim.add_argument("--wd_pf", type=rate, default=1e-2, help="weight decay of the fuser")
    optim.add_argument("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    optim.add_argument("--grad_clip", type=rate, default=0.0,
                       help="largest norm of all gradients together; 0: no limit")
    optim.add_argument("--max_bad_steps", type=count, default=10,
                       help="a step whose loss or gradient is not finite is skipped; this many in a row end the run")
    optim.add_argument("--model-ema-decay", type=rate, default=0.0,
                       help="decay of an exponential moving average of the weights, as in 0.999, which is then "
                            "validated and stored; 0: none")
    optim.add_argument("--seed", type=seed, default=0, help="seed of initial weights, sample order and dropout")

    part = parser.add_argument_group("training a part")
    part.add_argument("--freeze_bert", action="store_true",
                      help="do not train the text encoder, and run it without dropout")
    part.add_argument("--freeze_backbone", action="store_true",
                      help="do not train LAVT's backbone (Swin and PWAM), and run it without dropout")
    part.add_argument("--train_fuser_only", action="store_true",
                      help="train the fuser alone, on the fusion loss; the data need no masks")
    part.add_argument("--eval_only", action="store_true",
                      help="print the validation metrics of the checkpoint given by --resume; write nothing")

    ablation = parser.add_argument_group("ablations (test.py and predict.py read them from the checkpoint)")
    ablation.add_argument("--fuser_text", choices=["sentence", "none"], default="sentence",
                          help="what the fuser reads; none: an empty sentence, while the segmenter reads the true one")
    ablation.add_argument("--detach_fused", action="store_true",
                          help="keep the gradient of the segmentation loss from the fuser, so that the two are trained "
                               "side by side, not jointly")

    run_on = parser.add_argument_group("device, precision and memory")
    add_device_flag(run_on)
    run_on.add_argument("--amp", action="store_true",
                        help="run the networks in a 16-bit type; losses and metrics stay in float32")
    run_on.add_argument("--amp-dtype", choices=["bfloat16", "float16"], default="bfloat16",
                        help="the type for --amp; float16 comes with loss scaling")
    run_on.add_argument("--grad-accum-steps", type=count, default=1, help="batches per optimizer step")
    run_on.add_argument("--grad-checkpointing", action="store_true",
                        help="recompute Swin's blocks and the fuser in the backward pass instead of storing "
                             "activations")
    run_on.add_argument("--channels-last", action="store_true", help="NHWC memory format, which can be faster")
    run_on.add_argument("--torchcompile", action="store_true",
                        help="train with torch.compile; the first step takes minutes")
    run_on.add_argument("--tf32", action="store_true", help="allow TensorFloat-32 in float32 matrix products")
    run_on.add_argument("--bf16_gradients", action="store_true",
                        help="several processes exchange gradients in bfloat16: half the bytes, for slow networks")
    run_on.add_argument("--dist-timeout", type=at_least(0.01, float, most=1e6), default=10.0,
                        help="minutes until a process that does not answer ends a distributed job")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="./ckpts/risfusion", help="folder for all files of the run")
    output.add_argument("--model_id", default="lavt", help="name of the best checkpoint: model_best_MODEL_ID.pth")
    output.add_argument("--eval_vis_dir", default="./eval_vis",
                        help="folder for pictures of the first validation samples; empty: none")
    output.add_argument("--print-freq", type=count, default=10,
                        help="steps between two readings of the losses, each of which waits for the device")
    output.add_argument("--resume", default="", metavar="PATH",
                        help="last.pth or epoch_NNN.pth to resume from; auto: last.pth in --output-dir, if it exists")
    output.add_argument("--save_every_minutes", type=at_least(0, float, most=1e6), default=10.0,
                        help="minutes between two saves of last.pth within an epoch; 0: after every step")
    output.add_argument("--keep", type=at_least(0), default=0,
                        help="number of latest epochs whose checkpoints epoch_NNN.pth are kept; 0: none")
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
    needed = ["train_parquet"] * (not args.eval_only) + ["val_parquet"]
    from_checkpoint = args.resume or args.init_from  # which may hold what the default folder of BERT has
    needed += [name for name in ("bert_tokenizer", "ck_bert") if getattr(args, name) != BERT or not from_checkpoint]
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
        ("w_focus", bool(args.w_focus and args.train_fuser_only),
         "leave it out; it needs the masks of the objects, which --train_fuser_only does not read"),
        ("train_fuser_only", args.train_fuser_only and args.prefusion_model != "unet_fuser",
         f"--prefusion_model {args.prefusion_model} has no parameters to train"),
        ("ck_prefusion", bool(args.ck_prefusion) and args.prefusion_model != "unet_fuser",
         f"--prefusion_model {args.prefusion_model} has no parameters to start from"),
        ("detach_fused", args.detach_fused and args.train_fuser_only,
         "leave it out; with --train_fuser_only there is no segmentation loss"),
        ("detach_fused", args.detach_fused and not args.lambda_prefusion,
         "at --lambda_prefusion 0 the fuser has nothing else to learn from"),
        ("fuser_text", args.fuser_text == "none" and args.prefusion_model != "unet_fuser",
         f"--prefusion_model {args.prefusion_model} reads no sentence"),
        ("detach_fused", args.detach_fused and args.prefusion_model != "unet_fuser",
         f"--prefusion_model {args.prefusion_model} has no parameters that a gradient could reach"),
        ("w_focus", bool(args.w_focus) and args.prefusion_model != "unet_fuser",
         f"--prefusion_model {args.prefusion_model} has no parameters that a gradient could reach"),
        ("torchcompile", args.torchcompile and args.grad_checkpointing, "cannot be combined with --grad-checkpointing"),
    ]


def main() -> None:
    args = parse_args()

    import trainer  # after the command line is known to be good: its imports take seconds

    trainer.run_job(args)


if __name__ == "__main__":
    run(main)
