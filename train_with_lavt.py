"""Train RIS-FUSION: text encoder, fuser and LAVT together. A plain run is the published recipe."""
import argparse
import logging
import math
import os
import shlex
import sys

from utils.errors import InputError, UsageError, run
from utils.flags import ArgumentParser, at_least, find_resume, image_size, make_folder, require_existing
from utils.text import counted

BERT = "./bert/pretrained_weights/bert-base-uncased"
SWIN = "./pretrained_weights/swin_base_patch4_window12_384_22k.pth"
LAVT_ONE = ("./pretrained_weights/lavt_one_8_cards_ImgNet22KPre_swin-base-window12_refcoco+_adamw_"
            "b32lr0.00005wd1e-2_E40.pth")
VALIDATION_PICTURES = 8
RUN_FILES = r"log\.jsonl|run\.json|curves\.png|tensorboard|(last|epoch_\d+|model_best_.*)\.pth"

log = logging.getLogger("train")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    rate, count, weight = at_least(0, float), at_least(1), at_least(0, float)

    data = parser.add_argument_group("data")
    data.add_argument("--train_parquet", default="./data/mm_ris_train.parquet", help="parquet file, or folder of them")
    data.add_argument("--val_parquet", default="./data/mm_ris_val.parquet", help="likewise, for validation")
    data.add_argument("--bad_rows", choices=["stop", "skip"], default="stop",
                      help="rows that cannot be used: stop at the first, or skip them and list them in the log")
    data.add_argument("--img_size", type=image_size, default=480, help="side of the square images, pixels, above 32")
    data.add_argument("-b", "--batch-size", type=count, default=16, help="samples in a step of each process")
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
    optim.add_argument("--max_bad_steps", type=count, default=10,
                       help="steps in a row without a finite loss and gradient that end the run; fewer are skipped")
    optim.add_argument("--model-ema-decay", type=rate, default=0.0,
                       help="validate and store weights averaged over the steps with this decay, as in 0.999; 0: not")
    optim.add_argument("--seed", type=at_least(0), default=0)

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
                        help="compute Swin's blocks and the fuser twice instead of remembering them")
    run_on.add_argument("--channels-last", action="store_true", help="store images as NHWC, which can be faster")
    run_on.add_argument("--torchcompile", action="store_true",
                        help="train with torch.compile; the first step takes minutes")
    run_on.add_argument("--tf32", action="store_true", help="allow TensorFloat-32 in float32 matrix products")
    run_on.add_argument("--dist-timeout", type=at_least(0.01, float), default=10.0,
                        help="minutes until a process that does not answer ends a job of several")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="./ckpts/risfusion", help="folder for checkpoints, log and curves")
    output.add_argument("--model_id", default="lavt", help="the best checkpoint is model_best_<model_id>.pth")
    output.add_argument("--eval_vis_dir", default="./eval_vis",
                        help="folder for pictures of the first validation samples; empty: none")
    output.add_argument("--print-freq", type=count, default=10, help="steps between two readings of the losses")
    output.add_argument("--resume", default="", metavar="PATH",
                        help="go on from this checkpoint; auto: from last.pth in --output-dir, if it is there")
    output.add_argument("--save_every_minutes", type=at_least(0, float), default=10.0,
                        help="time between two saves of last.pth within an epoch; 0: after every step")
    output.add_argument("--keep", type=at_least(0), default=0,
                        help="keep the checkpoints of so many latest epochs, besides the best and the last")
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args()
    if os.path.basename(args.model_id) != args.model_id or not args.model_id:
        parser.error(f"argument --model_id: {args.model_id!r} cannot be part of a file name")
    for name, value in (("fusion_drop", args.fusion_drop), ("model-ema-decay", args.model_ema_decay)):
        if value >= 1:
            parser.error(f"argument --{name}: must be below 1, not {value}")
    if args.load_lavt_head and not args.init_from_lavt_one:
        parser.error("argument --load_lavt_head: there is no classifier to take without --init_from_lavt_one")
    if not args.bert_tokenizer:
        parser.error("argument --bert_tokenizer: a vocabulary cannot be random; name a folder")
    if args.eval_only and not args.resume:
        parser.error("argument --eval_only: name the checkpoint to evaluate with --resume")
    if args.train_fuser_only and (args.freeze_bert or args.freeze_backbone or args.load_lavt_head):
        parser.error("argument --train_fuser_only: leave out --freeze_bert, --freeze_backbone and --load_lavt_head; "
                     "BERT stays as it is anyway, and there is no LAVT")
    if args.train_fuser_only and not args.lambda_prefusion:
        parser.error("argument --lambda_prefusion: at 0 there is nothing for --train_fuser_only to learn from")
    if args.torchcompile and args.grad_checkpointing:
        parser.error("argument --torchcompile: cannot be combined with --grad-checkpointing")
    args.resume = find_resume(args.resume, args.output_dir)
    if args.eval_only and not args.resume:
        parser.error(f"argument --resume: there is no last.pth in {args.output_dir!r}")
    needed = ["train_parquet"] * (not args.eval_only) + ["val_parquet", "bert_tokenizer", "ck_bert"]
    if not args.resume:  # a run that goes on brings its weights along
        needed += ["init_from_lavt_one", "ck_prefusion"] + ["pretrained_swin_weights"] * (not args.train_fuser_only)
    require_existing(args, *needed)
    return args


def main() -> None:
    args = parse_args()

    # After the command line is known to be good: these take seconds.
    from training.autosave import Stopped
    from utils import distributed
    from utils.device import allow_tf32, is_out_of_memory, seed_everything, select_device
    from utils.workers import end_workers

    device = select_device(args.device, distributed.local_rank())
    distributed.start(device, args.dist_timeout)
    logging.basicConfig(level=logging.INFO if distributed.rank() == 0 else logging.ERROR, format="%(message)s",
                        stream=sys.stdout)
    if args.tf32:
        allow_tf32(device)
    seed_everything(args.seed)
    try:
        with distributed.peers_watched(args.dist_timeout):
            if args.eval_only:
                evaluate_only(args, device)
            else:
                train(args, device)
    except Stopped as stop:
        log.info("stopped by %s; the run so far is in %s; to go on:\n  %s", stop,
                 os.path.join(args.output_dir, "last.pth"), resuming_command())
        sys.exit(128 + stop.signal)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory with {args.batch_size} samples of {args.img_size}×{args.img_size} pixels on {device}; "
            "lower -b (and raise --grad-accum-steps by the same factor), set --amp or --grad-checkpointing, or lower "
            "--img_size") from error
    finally:
        end_workers()
    distributed.stop()


def train(args: argparse.Namespace, device) -> None:
    """The whole run, or what is left of it."""
    from dataclasses import asdict

    import torch

    from engine import Progress, train_one_epoch
    from models import build_criterion
    from training import state as training_state
    from training.autosave import Autosave
    from training.run_record import RunRecord
    from utils import checkpoint, distributed
    from utils.device import (
        can_sync_batchnorm,
        grad_scaler,
        keep_freed_memory,
        peak_memory,
        return_freed_memory,
        seed_everything,
        warn_if_slow,
    )

    # What there is to work with
    content = checkpoint.read(args.resume, "--resume") if args.resume else {}
    state = training_state.unpack(content, args.resume) if args.resume else None
    make_folder(args.output_dir, "--output-dir")
    if args.eval_vis_dir:
        make_folder(args.eval_vis_dir, "--eval_vis_dir")
    model, tokenizer = build_networks(args)
    if state:
        checkpoint.load_parts(model, state.get("weights", content), args.resume)
    train_loader, val_loader = build_loaders(args, tokenizer, device)
    dtype = getattr(torch, args.amp_dtype) if args.amp else None
    warn_if_slow(device, dtype)
    if can_sync_batchnorm(device) and distributed.world_size() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    if args.grad_checkpointing:
        model.recompute_activations()
        return_freed_memory(device)
    else:
        keep_freed_memory(device)
    ema = build_ema(args, model, content)
    if args.torchcompile:
        model.compile()
    wrapped = distributed.wrap(model, device)
    criterion = build_criterion(args, distributed.mean if distributed.world_size() > 1 else None)
    optimizer = build_optimizer(args, model, device)
    scaler = grad_scaler(device, dtype)

    # Where it stands
    rows, step_samples = len(train_loader.dataset), train_loader.sampler.step_samples
    epoch_steps = rows // step_samples
    progress, changes = restore(args, content, optimizer, scaler, rows, step_samples) if state else (Progress(), [])

    def decay(step: int) -> float:
        return max(1 - step / (args.epochs * epoch_steps), 0) ** 0.9

    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, decay, last_epoch=progress.epoch * epoch_steps + progress.step - 1)

    # What it leaves
    if distributed.rank() == 0:
        make_room(args)
    record = RunRecord(args.output_dir, args.eval_vis_dir, scheduler.last_epoch, active=distributed.rank() == 0)
    record.start(summarise_run(args, device, model, rows, len(val_loader.dataset), step_samples))

    def pack(**more) -> dict:
        return checkpoint.pack(ema.module if ema else model, progress.epoch - 1, vars(args), **more)

    def pack_all() -> dict:
        """With all that a run needs to go on; for all processes together."""
        return pack(training=training_state.pack(
            asdict(progress), optimizer, scaler, device, rows, checkpoint.weights(model) if ema else None))

    def on_reading(values: dict[str, float], samples_per_second: float) -> None:
        lr_seg, lr_pf = scheduler.get_last_lr()
        record.step(scheduler.last_epoch, values, {"lr_seg": lr_seg, "lr_pf": lr_pf}, samples_per_second,
                    peak_memory(device), progress.skipped)

    autosave = Autosave(lambda: record.checkpoint("last.pth", pack_all()), args.save_every_minutes)
    seed_everything(args.seed + distributed.rank())  # dropout differs between processes
    if state:
        changes += training_state.restore_random(state["random"], device)
        tell_resumed(args, progress, changes)

    while progress.epoch < args.epochs:
        train_loader.sampler.set_epoch(progress.epoch, start=progress.samples)
        train_one_epoch(
            wrapped, criterion, train_loader, optimizer, scheduler, scaler, device, progress, autosave,
            networks=trainable(model), dtype=dtype, accum=args.grad_accum_steps, grad_clip=args.grad_clip,
            print_freq=args.print_freq, max_bad_steps=args.max_bad_steps, ema=ema, on_reading=on_reading)
        autosave.save()  # validation may take long, and a signal ends it at once

        weights = ema.module if ema else model
        distributed.share_buffers(weights)
        metrics, page, bad = validate(args, weights, criterion, val_loader, device, dtype, autosave.check)
        score = -metrics["val_total"] if args.train_fuser_only else metrics["oIoU"]
        better, progress.best = score > progress.best, max(score, progress.best)
        start = decay(progress.epoch * epoch_steps)
        progress.history.append({
            "epoch": progress.epoch, **progress.means(), "lr_seg": args.lr_seg * start, "lr_pf": args.lr_pf * start,
            **metrics, "skipped_steps": progress.skipped, "left_out": sorted(progress.left_out),
            "validation_left_out": sorted(bad), "seconds": progress.seconds,
            "samples_per_second": progress.samples / progress.seconds})
        log.info("epoch %d: loss %.4f, %s, %.1f samples/s", progress.epoch, progress.history[-1]["total"], ", ".join(
            f"{name} {metrics[name]:.{digits}f}" for name, digits in (("mIoU", 2), ("oIoU", 2), ("val_total", 4))
            if name in metrics),
            progress.history[-1]["samples_per_second"])
        progress.next_epoch()
        record.epoch(progress.history, page, scheduler.last_epoch)
        if better:
            record.checkpoint(f"model_best_{args.model_id}.pth", pack(metrics=metrics))
        if args.keep:
            record.checkpoint(f"epoch_{progress.epoch - 1:03d}.pth", pack_all())
            record.keep_latest(args.keep)
        autosave.save()

    record.close()
    best = f"val_total {-progress.best:.4f}" if args.train_fuser_only else f"overall IoU {progress.best:.2f}"
    log.info("%d of %s done; best %s, in %s", progress.epoch, counted(args.epochs, "epoch"), best,
             os.path.join(args.output_dir, f"model_best_{args.model_id}.pth"))


def restore(args: argparse.Namespace, content: dict, optimizer, scaler, rows: int, step_samples: int):
    """Fill optimizer and scaler from a checkpoint; return its progress and, in words, what is not as it was."""
    from engine import Progress
    from training import state as training_state
    from utils import checkpoint

    state = content["training"]
    progress = Progress(**state["progress"])
    changes = training_state.differences(checkpoint.stored_args(content), vars(args), state["rows"], rows)
    changes += progress.refit(step_samples)
    training_state.restore_optimizer(optimizer, state["optimizer"], args.resume)
    scaler.load_state_dict(state["scaler"])
    best_file = os.path.join(args.output_dir, f"model_best_{args.model_id}.pth")
    if not (continues_in_place(args) and os.path.isfile(best_file)):
        progress.best = -math.inf  # the best so far lies in another folder: this one gets one of its own
    return progress, changes


def tell_resumed(args: argparse.Namespace, progress, changes: list[str]) -> None:
    """Say where the run goes on, and in what it differs."""
    for change in changes:
        log.warning("WARNING: the run goes on otherwise than it began: %s", change)
    if progress.epoch < args.epochs:
        log.info("%s: going on at epoch %d, step %d", args.resume, progress.epoch, progress.step)
    else:
        log.info("%s: this run is finished; raise --epochs for more", args.resume)


def evaluate_only(args: argparse.Namespace, device) -> None:
    """Print how good the checkpoint of `--resume` is on the validation set."""
    import torch

    from evaluation.metrics import table
    from models import build_criterion
    from utils import checkpoint, distributed

    content = checkpoint.read(args.resume, "--resume")
    model, tokenizer = build_networks(args)
    checkpoint.load_parts(model, content, args.resume)
    _, loader = build_loaders(args, tokenizer, device)
    metrics, _, _ = validate(args, model.to(device), build_criterion(args), loader, device,
                          getattr(torch, args.amp_dtype) if args.amp else None)
    if distributed.rank() == 0:
        print(f"{args.resume} on {args.val_parquet}\n{table(metrics)}")


def validate(args: argparse.Namespace, model, criterion, loader, device, dtype, check=None):
    """The validation metrics, the first samples as a contact sheet, (H, W, 3) uint8, and messages on rows left out."""
    import torch

    from engine import evaluate, evaluate_fusion
    from utils import distributed
    from utils.draw import SampleSheet

    bad = []
    sheet = SampleSheet(loader.dataset.questions, VALIDATION_PICTURES)

    def on_batch(batch, output):
        sheet.add(batch, output)
        if check is not None:
            check()

    with torch.compiler.set_stance("force_eager"):  # compiling for evaluation, too, would take longer than it saves
        if args.train_fuser_only:
            metrics = evaluate_fusion(model, criterion, loader, device, on_batch, bad, dtype)
        else:
            metrics, _ = evaluate(model, loader, device, on_batch=on_batch, bad=bad, dtype=dtype)
    for message in bad:
        log.warning("WARNING: left out: %s", message)
    sheet.rows = distributed.joined(sheet.rows)
    return metrics, sheet.page(), bad


def build_networks(args: argparse.Namespace):
    """The joint model with the weights to start from, frozen as asked for, and the tokenizer."""
    from bert import Tokenizer, check_vocabulary
    from models import build_model
    from utils import checkpoint

    tokenizer = Tokenizer(args.bert_tokenizer)
    try:
        model = build_model(args, pretrained=not args.resume, segment=not args.train_fuser_only)
    except ValueError as error:
        raise UsageError(f"--mha: {error}") from error
    check_vocabulary(tokenizer, model.text_encoder)
    if args.init_from_lavt_one and not args.resume:
        checkpoint.load_lavt_one(model, args.init_from_lavt_one, with_head=args.load_lavt_head)
    if args.ck_prefusion and not args.resume:
        checkpoint.load_fuser(model.fuser, args.ck_prefusion)
    if args.freeze_bert or args.train_fuser_only:
        model.freeze(model.text_encoder)
    if args.freeze_backbone:
        model.freeze(model.segmenter.backbone)
    return model, tokenizer


def build_ema(args: argparse.Namespace, model, content: dict):
    """The weights' moving average, as far as the checkpoint of --resume brought it; None without --model-ema-decay."""
    from timm.utils import ModelEmaV3

    from utils import checkpoint

    if not args.model_ema_decay:
        return None
    ema = ModelEmaV3(model, decay=args.model_ema_decay)
    if content:
        checkpoint.load_parts(ema.module, content, args.resume)
    return ema


def build_loaders(args: argparse.Namespace, tokenizer, device):
    """The training loader, which `loader.sampler.set_epoch` puts anywhere in any epoch, and the validation loader."""
    import torch

    from data import EpochSampler, MMRISDataset, collate, share
    from utils import distributed
    from utils.device import can_pin_memory
    from utils.workers import leave_signals_to_the_parent

    rank, world_size = distributed.rank(), distributed.world_size()
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "persistent_workers": args.workers > 0,
               "pin_memory": args.pin_mem and can_pin_memory(device), "collate_fn": collate,
               "worker_init_fn": leave_signals_to_the_parent}

    def loader(dataset, sampler):
        # A generator of its own: making an iterator draws a number, and the run's generators are to know nothing of it.
        return torch.utils.data.DataLoader(dataset, sampler=sampler, generator=torch.Generator(), **options)

    masks = not args.train_fuser_only
    val_set = MMRISDataset(args.val_parquet, tokenizer, args.img_size, masks=masks, bad_rows=args.bad_rows)
    val_loader = loader(val_set, share(len(val_set), rank, world_size))
    if args.eval_only:
        return None, val_loader
    train_set = MMRISDataset(args.train_parquet, tokenizer, args.img_size, masks=masks, bad_rows=args.bad_rows)
    step_samples = args.batch_size * args.grad_accum_steps * world_size
    if len(train_set) < step_samples:
        raise InputError(f"{args.train_parquet} has {counted(len(train_set), 'row')}, fewer than the {step_samples} of "
                         "one step; lower -b")
    return loader(train_set, EpochSampler(train_set, step_samples, rank, world_size, args.seed)), val_loader


def build_optimizer(args: argparse.Namespace, model, device):
    """AdamW with one group for LAVT and BERT and one for the fuser."""
    import torch

    from utils.device import has_fused_optimizers

    networks = model.networks()
    lavt_and_bert = [p for name in ("segmenter", "text_encoder") if name in networks
                     for p in networks[name].parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": lavt_and_bert, "lr": args.lr_seg, "initial_lr": args.lr_seg, "weight_decay": args.wd_seg},
         {"params": list(model.fuser.parameters()), "lr": args.lr_pf, "initial_lr": args.lr_pf,
          "weight_decay": args.wd_pf}],
        amsgrad=args.amsgrad, fused=has_fused_optimizers(device))


def trainable(model) -> dict:
    """The networks with anything to train in them, by name."""
    return {name: network for name, network in model.networks().items()
            if any(p.requires_grad for p in network.parameters())}


def summarise_run(args: argparse.Namespace, device, model, train_rows: int, val_rows: int, step_samples: int) -> dict:
    """What the run is, as plain values; also shown."""
    import platform

    import torch

    from training.run_record import git_commit
    from utils import distributed
    from utils.device import describe

    millions = {name: round(sum(p.numel() for p in network.parameters()) / 1e6, 3)
                for name, network in model.networks().items()}
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    precision = args.amp_dtype if args.amp else "tf32" if args.tf32 else "float32"
    log.info("%s, %s, %s; parameters %s (%.1f M trained)", describe(device),
             counted(distributed.world_size(), "process", "processes"), precision,
             ", ".join(f"{name} {count:.1f} M" for name, count in millions.items()), learning)
    log.info("%d training and %s; %s of %s, %s a step", train_rows, counted(val_rows, "validation sample"),
             counted(args.epochs, "epoch"), counted(train_rows // step_samples, "step"),
             counted(step_samples, "sample"))
    return {
        "device": describe(device), "processes": distributed.world_size(), "precision": precision,
        "million_parameters": millions, "million_trained": round(learning, 3), "training_samples": train_rows,
        "validation_samples": val_rows, "effective_batch": step_samples, "steps_per_epoch": train_rows // step_samples,
        "resumed_from": args.resume or None, "git_commit": git_commit(), "python": platform.python_version(),
        "torch": torch.__version__, "command": sys.argv, "flags": vars(args)}


def continues_in_place(args: argparse.Namespace) -> bool:
    """Whether what lies in the output folder is this run's own."""
    return bool(args.resume) and os.path.dirname(os.path.abspath(args.resume)) == os.path.abspath(args.output_dir)


def make_room(args: argparse.Namespace) -> None:
    """Move what another run left in this one's folders out of the way."""
    from utils.files import set_aside

    if continues_in_place(args):
        return
    set_aside(args.output_dir, RUN_FILES)
    if args.eval_vis_dir:
        set_aside(args.eval_vis_dir, r"epoch_\d+\.png")


def resuming_command() -> str:
    """The command that goes on with this run."""
    words, former = [], ""
    for word in sys.argv:
        if former != "--resume" and word.split("=")[0] != "--resume":
            words.append(word)
        former = word
    launcher = "python"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        one_node = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
        launcher = f"torchrun --nproc_per_node={os.environ['WORLD_SIZE']}" if one_node else "torchrun … (as before)"
    return f"{launcher} {shlex.join(words)} --resume auto"


if __name__ == "__main__":
    run(main)
