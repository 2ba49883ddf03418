"""Train RIS-FUSION: text encoder, fuser and LAVT together. A plain run is the published recipe."""
import argparse
import json
import logging
import os
import sys
import time

from utils.errors import InputError, UsageError, run
from utils.flags import at_least, image_size, make_folder, require_existing

BERT = "./bert/pretrained_weights/bert-base-uncased"
SWIN = "./pretrained_weights/swin_base_patch4_window12_384_22k.pth"
LAVT_ONE = ("./pretrained_weights/lavt_one_8_cards_ImgNet22KPre_swin-base-window12_refcoco+_adamw_"
            "b32lr0.00005wd1e-2_E40.pth")
VALIDATION_PICTURES = 8

log = logging.getLogger("train")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    rate, count, weight = at_least(0, float), at_least(1), at_least(0, float)

    data = parser.add_argument_group("data")
    data.add_argument("--train_parquet", default="./data/mm_ris_train.parquet", help="parquet file, or folder of them")
    data.add_argument("--val_parquet", default="./data/mm_ris_val.parquet", help="likewise, for validation")
    data.add_argument("--img_size", type=image_size, default=480, help="side of the square images, pixels, above 32")
    data.add_argument("-b", "--batch-size", type=count, default=16, help="samples in a step")
    data.add_argument("-j", "--workers", type=at_least(0), default=16, help="processes that load data; 0: none")
    data.add_argument("--pin_mem", action="store_true", help="load batches into page-locked memory, for a faster copy")

    model = parser.add_argument_group("model")
    model.add_argument("--prefusion_model", choices=["unet_fuser"], default="unet_fuser", help="fusion network")
    model.add_argument("--prefusion_base_ch", type=count, default=32, help="fuser's width")
    model.add_argument("--swin_type", choices=["micro", "tiny", "small", "base", "large"], default="base")
    model.add_argument("--window12", action="store_true",
                       help="attention windows of 12, also implied by a Swin file with window12 in its name; else 7")
    model.add_argument("--mha", default="", help="attention heads of PWAM by stage, as in 4-4-4-4; empty: one each")
    model.add_argument("--fusion_drop", type=rate, default=0.0, help="dropout rate in PWAM")

    start = parser.add_argument_group("weights to start from (an empty string: random)")
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

    optim = parser.add_argument_group("optimization (AdamW, polynomial decay to 0)")
    optim.add_argument("--epochs", type=count, default=10)
    optim.add_argument("--lr_seg", type=rate, default=5e-5, help="learning rate of LAVT and BERT")
    optim.add_argument("--wd_seg", type=rate, default=1e-2, help="weight decay of LAVT and BERT")
    optim.add_argument("--lr_pf", type=rate, default=1e-4, help="learning rate of the fuser")
    optim.add_argument("--wd_pf", type=rate, default=1e-2, help="weight decay of the fuser")
    optim.add_argument("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    optim.add_argument("--grad_clip", type=rate, default=0.0, help="largest norm of the gradients; 0: no limit")
    optim.add_argument("--channels-last", action="store_true", help="store images as NHWC, which can be faster")
    optim.add_argument("--seed", type=at_least(0), default=0)
    optim.add_argument("--device", default="auto", help="auto, cuda, npu or cpu; an index may follow, as in cuda:1")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="./ckpts/risfusion", help="folder for checkpoints, log and curves")
    output.add_argument("--model_id", default="lavt", help="the best checkpoint is model_best_<model_id>.pth")
    output.add_argument("--eval_vis_dir", default="./eval_vis",
                        help="folder for pictures of the first validation samples; empty: none")
    output.add_argument("--print-freq", type=count, default=10, help="steps between two updates of the shown losses")
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args()
    if os.path.basename(args.model_id) != args.model_id or not args.model_id:
        parser.error(f"argument --model_id: {args.model_id!r} cannot be part of a file name")
    if args.fusion_drop >= 1:
        parser.error(f"argument --fusion_drop: a dropout rate is below 1, not {args.fusion_drop}")
    if args.load_lavt_head and not args.init_from_lavt_one:
        parser.error("argument --load_lavt_head: there is no classifier to take without --init_from_lavt_one")
    if not args.bert_tokenizer:
        parser.error("argument --bert_tokenizer: a vocabulary cannot be random; name a folder")
    require_existing(args, "train_parquet", "val_parquet", "pretrained_swin_weights", "bert_tokenizer", "ck_bert",
                     "init_from_lavt_one", "ck_prefusion")
    return args


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    # After the command line is known to be good: these take seconds.
    import torch

    from bert import Tokenizer, check_vocabulary
    from engine import evaluate, train_one_epoch
    from models import build_criterion, build_model
    from utils import checkpoint
    from utils.device import seed_everything, select_device
    from utils.draw import SampleSheet
    from utils.plot_log import plot
    from utils.results import set_aside

    device = select_device(args.device)
    make_folder(args.output_dir, "--output-dir")
    if args.eval_vis_dir:
        make_folder(args.eval_vis_dir, "--eval_vis_dir")
    seed_everything(args.seed)

    tokenizer = Tokenizer(args.bert_tokenizer)
    train_loader, val_loader = build_loaders(args, tokenizer)
    try:
        model = build_model(args)
    except ValueError as error:
        raise UsageError(f"--mha: {error}") from error
    check_vocabulary(tokenizer, model.text_encoder)
    if args.init_from_lavt_one:
        checkpoint.load_lavt_one(model, args.init_from_lavt_one, with_head=args.load_lavt_head)
    if args.ck_prefusion:
        checkpoint.load_fuser(model.fuser, args.ck_prefusion)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    criterion = build_criterion(args)
    steps = args.epochs * len(train_loader)
    optimizer, scheduler = build_optimizer(args, model, steps)
    log.info("%s; %d training and %d validation samples, %d steps of %d samples; %s", device, len(train_loader.dataset),
             len(val_loader.dataset), steps, args.batch_size, ", ".join(
                 f"{name} {sum(p.numel() for p in getattr(model, name).parameters()) / 1e6:.1f} M"
                 for name in ("text_encoder", "fuser", "segmenter")))

    log_file = os.path.join(args.output_dir, "log.jsonl")
    best_file = os.path.join(args.output_dir, f"model_best_{args.model_id}.pth")
    best = -1.0
    for epoch in range(args.epochs):
        lr_seg, lr_pf = scheduler.get_last_lr()
        start = time.perf_counter()
        terms = train_one_epoch(model, criterion, train_loader, optimizer, scheduler, device, epoch,
                                args.grad_clip, args.print_freq)
        seconds = time.perf_counter() - start
        rate = len(train_loader) * args.batch_size / seconds

        sheet = SampleSheet(val_loader.dataset.questions, VALIDATION_PICTURES if args.eval_vis_dir else 0)
        metrics, _ = evaluate(model, val_loader, device, on_batch=sheet.add)
        if epoch == 0:  # not before there is something to put in its place
            set_aside(args.output_dir, r"log\.jsonl|curves\.png|last\.pth|model_best_.*\.pth")
            if args.eval_vis_dir:
                set_aside(args.eval_vis_dir, r"epoch_\d+\.png")
        sheet.save(os.path.join(args.eval_vis_dir, f"epoch_{epoch:03d}.png"))
        log.info("epoch %d: loss %.4f, mIoU %.2f, oIoU %.2f, %.1f samples/s", epoch, terms["total"], metrics["mIoU"],
                 metrics["oIoU"], rate)
        with open(log_file, "a", encoding="utf-8") as file:
            entry = {"epoch": epoch, **terms, "lr_seg": lr_seg, "lr_pf": lr_pf, **metrics, "seconds": seconds,
                     "samples_per_second": rate}
            file.write(json.dumps(entry) + "\n")
        plot([args.output_dir], os.path.join(args.output_dir, "curves.png"))

        content = checkpoint.pack(model, epoch, vars(args), metrics=metrics)
        checkpoint.save(content, os.path.join(args.output_dir, "last.pth"))
        if metrics["oIoU"] > best:
            best = metrics["oIoU"]
            checkpoint.save(content, best_file)
    log.info("best overall IoU %.2f, in %s", best, best_file)


def build_loaders(args: argparse.Namespace, tokenizer):
    """The training loader, seeded, shuffled and without its last incomplete batch, and the validation loader."""
    import torch

    from data import MMRISDataset, collate

    train_set = MMRISDataset(args.train_parquet, tokenizer, args.img_size)
    val_set = MMRISDataset(args.val_parquet, tokenizer, args.img_size)
    if len(train_set) < args.batch_size:
        raise InputError(f"{args.train_parquet} has {len(train_set)} rows, fewer than one batch of {args.batch_size}; "
                         "lower -b")
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "persistent_workers": args.workers > 0,
               "pin_memory": args.pin_mem, "collate_fn": collate}
    order = torch.Generator().manual_seed(args.seed)
    return (torch.utils.data.DataLoader(train_set, shuffle=True, drop_last=True, generator=order, **options),
            torch.utils.data.DataLoader(val_set, **options))


def build_optimizer(args: argparse.Namespace, model, steps: int):
    """AdamW with one group for LAVT and BERT and one for the fuser, and (1 − step/steps)^0.9 for both."""
    import torch

    lavt_and_bert = [*model.segmenter.parameters(), *model.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": lavt_and_bert, "lr": args.lr_seg, "weight_decay": args.wd_seg},
         {"params": list(model.fuser.parameters()), "lr": args.lr_pf, "weight_decay": args.wd_pf}],
        amsgrad=args.amsgrad)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 0.9)


if __name__ == "__main__":
    run(main)
