"""A whole training run: model, data, optimizer, resuming, and the loop over epochs.

`args` is the command line of `train_with_lavt.py` throughout, complete and checked.
"""
import logging
import math
import os
import platform
import shlex
import sys
from argparse import Namespace
from dataclasses import asdict

import torch
from timm.utils import ModelEmaV3

from bert import Tokenizer, check_vocabulary
from data import MMRISDataset, evaluation_loader, training_loader
from engine import Progress, evaluate, evaluate_fusion, train_one_epoch
from evaluation.metrics import metrics_table
from models import Architecture, build_criterion, build_model
from models.ris_fusion import RISFusion
from training import state as training_state
from training.autosave import Autosave, Stopped
from training.optimizer import build_optimizer, learning_rates, polynomial_decay, trained_networks
from training.run_record import RunRecord, git_commit
from utils import checkpoint, distributed
from utils.device import (
    allow_tf32,
    can_pin_memory,
    can_sync_batchnorm,
    describe,
    grad_scaler,
    is_out_of_memory,
    peak_memory,
    seed_everything,
    select_device,
    warn_if_slow,
)
from utils.draw import SampleSheet
from utils.errors import InputError, UsageError, naming
from utils.files import set_aside
from utils.flags import make_folder
from utils.text import counted

try:
    from models import fast
except ImportError:  # the folder may be deleted: the same results, slower and in more memory
    fast = None

VALIDATION_PICTURES = 8
RUN_FILES = r"log\.jsonl|run\.json|curves\.png|tensorboard|(last|epoch_\d+|model_best_.*)\.pth"

logger = logging.getLogger(__name__)


def run_job(args: Namespace) -> None:
    """Train, or with `--eval_only` validate, as this process of one or several; ends the process of a stopped run.

    Raises:
        UsageError, InputError: what cannot be carried out, in one sentence.
    """
    device = select_device(args.device, distributed.local_rank())
    if args.tf32:
        allow_tf32(device)
    with distributed.job(device, args.dist_timeout):
        seed_everything(args.seed)
        try:
            if args.eval_only:
                evaluate_only(args, device)
            else:
                train(args, device)
        except Stopped as stop:
            logger.info("stopped by %s; the run so far is in %s; to resume it:\n  %s", stop,
                        os.path.join(args.output_dir, "last.pth"), resuming_command())
            sys.exit(128 + stop.signal)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"out of memory with {args.batch_size} samples of {args.img_size}×{args.img_size} pixels on {device}; "
                "lower -b (and raise --grad-accum-steps by the same factor), set --amp or --grad-checkpointing, or "
                "lower --img_size") from error


def train(args: Namespace, device: torch.device) -> None:
    """The whole run, or what is left of it."""
    main_process, several = distributed.rank() == 0, distributed.world_size() > 1
    dtype = getattr(torch, args.amp_dtype) if args.amp else None
    content, state = read_resumed(args)
    make_folder(args.output_dir, "--output-dir")
    if args.eval_vis_dir:
        make_folder(args.eval_vis_dir, "--eval_vis_dir")

    # Data
    tokenizer = open_tokenizer(args)
    train_loader, val_loader = (opened(args, tokenizer, device) for opened in (training_data, validation_data))
    rows, step_samples = len(train_loader.dataset), train_loader.sampler.step_samples
    epoch_steps = rows // step_samples

    # Model
    model = build_networks(args, tokenizer)
    if state:
        with naming("resume"):
            checkpoint.load_parts(model, state.get("weights", content), args.resume)
    if can_sync_batchnorm(device) and several:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    warn_if_slow(device, dtype)
    install_fast(args, model, device)
    ema = build_ema(args, model, content)
    averaged = ema.module if ema else model  # what is validated and stored as the model
    if args.torchcompile:
        model.compile()
    wrapped = distributed.wrap(model, device)
    criterion = build_criterion(args, distributed.mean if several else None)

    # Optimizer, and where a resumed run stands
    optimizer = build_optimizer(model, device, lr_seg=args.lr_seg, wd_seg=args.wd_seg, lr_pf=args.lr_pf,
                                wd_pf=args.wd_pf, amsgrad=args.amsgrad)
    scaler = grad_scaler(device, dtype)
    progress, changes = restore(args, content, optimizer, scaler, rows, step_samples) if state else (Progress(), [])
    scheduler = polynomial_decay(optimizer, args.epochs * epoch_steps, progress.epoch * epoch_steps + progress.step)
    seed_everything(args.seed + distributed.rank())  # dropout differs between processes
    if state:
        changes += training_state.restore_random(state["random"], device)
        report_resumed(args, progress, changes)

    # What the run leaves
    if main_process:
        make_room(args)
    record = RunRecord(args.output_dir, args.eval_vis_dir, scheduler.last_epoch, active=main_process)
    record.start(describe_run(args, device, model, rows, len(val_loader.dataset), step_samples))

    def pack(**more) -> dict:
        return checkpoint.pack(averaged, progress.epoch - 1, vars(args), **more)

    def pack_all() -> dict:
        """With all that a run needs to go on; for all processes together."""
        return pack(training=training_state.pack(
            asdict(progress), optimizer, scaler, device, rows, checkpoint.weights(model) if ema else None))

    def on_terms(terms: dict[str, float], samples_per_second: float) -> None:
        record.step(scheduler.last_epoch, terms, learning_rates(optimizer), samples_per_second, peak_memory(device),
                    progress.skipped)

    autosave = Autosave(lambda: record.checkpoint("last.pth", pack_all()), args.save_every_minutes)

    # Loop
    while progress.epoch < args.epochs:
        if progress.step == 0:
            progress.rates = learning_rates(optimizer)
        train_loader.sampler.set_epoch(progress.epoch, start=progress.samples)
        train_one_epoch(
            wrapped, criterion, train_loader, optimizer, scheduler, scaler, device, progress, autosave,
            networks=trained_networks(model), dtype=dtype, accum=args.grad_accum_steps, grad_clip=args.grad_clip,
            print_freq=args.print_freq, max_bad_steps=args.max_bad_steps, ema=ema, on_terms=on_terms)
        autosave.save()  # validation may take long, and a signal ends it at once

        distributed.share_buffers(averaged)
        metrics, sheet, bad_rows = validate(args, averaged, criterion, val_loader, device, dtype, autosave.check)
        score = -metrics["val_total"] if args.train_fuser_only else metrics["oIoU"]
        better, progress.best = score > progress.best, max(score, progress.best)
        progress.history.append(progress.entry(metrics, bad_rows))
        report_epoch(progress.history[-1])
        progress.next_epoch()
        record.epoch(progress.history, sheet, scheduler.last_epoch)
        if better:
            record.checkpoint(f"model_best_{args.model_id}.pth", pack(metrics=metrics))
        if args.keep:
            record.checkpoint(f"epoch_{progress.epoch - 1:03d}.pth", pack_all())
            record.keep_latest(args.keep)
        autosave.save()
    record.close()
    report_end(args, progress)


def evaluate_only(args: Namespace, device: torch.device) -> None:
    """Print how good the checkpoint of `--resume` is on the validation set."""
    with naming("resume"):
        content = checkpoint.read(args.resume)
    tokenizer = open_tokenizer(args)
    loader = validation_data(args, tokenizer, device)
    model = build_networks(args, tokenizer)
    with naming("resume"):
        checkpoint.load_parts(model, content, args.resume)
    metrics, _, _ = validate(args, model.to(device), build_criterion(args), loader, device,
                             getattr(torch, args.amp_dtype) if args.amp else None)
    if distributed.rank() == 0:
        print(f"{args.resume} on {args.val_parquet}\n{metrics_table(metrics)}")


def validate(args: Namespace, model: RISFusion, criterion, loader, device: torch.device, dtype=None, on_batch=None):
    """Evaluate on the validation set.

    Args:
        on_batch: called after each batch.
    Returns:
        The metrics, the first samples as a contact sheet, (H, W, 3) uint8, and the messages about rows left out.
    """
    bad_rows = []
    sheet = SampleSheet(loader.dataset.questions, VALIDATION_PICTURES)

    def add_to_sheet(batch, output):
        sheet.add(batch, output)
        if on_batch is not None:
            on_batch()

    with torch.compiler.set_stance("force_eager"):  # compiling for evaluation, too, would take longer than it saves
        if args.train_fuser_only:
            metrics = evaluate_fusion(model, criterion, loader, device, add_to_sheet, bad_rows, dtype)
        else:
            metrics, _ = evaluate(model, loader, device, on_batch=add_to_sheet, bad=bad_rows, dtype=dtype)
    for message in bad_rows:
        logger.warning("WARNING: left out: %s", message)
    sheet.gather()
    return metrics, sheet.page(), bad_rows


def open_tokenizer(args: Namespace) -> Tokenizer:
    """The tokenizer of `--bert_tokenizer`."""
    with naming("bert_tokenizer"):
        return Tokenizer(args.bert_tokenizer)


def build_networks(args: Namespace, tokenizer: Tokenizer) -> RISFusion:
    """The joint model with the weights to start from, frozen as asked for."""
    try:
        Architecture.from_flags(args)
    except ValueError as error:
        raise UsageError(str(error), "mha") from error
    model = build_model(args, pretrained=not args.resume, segment=not args.train_fuser_only)
    with naming("bert_tokenizer"):
        check_vocabulary(tokenizer, model.text_encoder)
    if args.init_from_lavt_one and not args.resume:
        with naming("init_from_lavt_one"):
            checkpoint.load_lavt_one(model, args.init_from_lavt_one, with_head=args.load_lavt_head)
    if args.ck_prefusion and not args.resume:
        with naming("ck_prefusion"):
            checkpoint.load_fuser(model.fuser, args.ck_prefusion)
    if args.freeze_bert or args.train_fuser_only:
        model.freeze(model.text_encoder)
    if args.freeze_backbone:
        model.freeze(model.segmenter.backbone)
    return model


def install_fast(args: Namespace, model: RISFusion, device: torch.device) -> None:
    """Let the model train in less memory, as the flags and the device want it."""
    if args.grad_checkpointing:
        if fast is None:
            raise UsageError("models/fast/, which it needs, is not here; leave the flag out", "grad-checkpointing")
        fast.checkpoint_activations(model)
        fast.return_freed_memory(device)
    elif fast is not None:
        fast.save_memory(model, device)
        fast.keep_freed_memory(device)


def build_ema(args: Namespace, model: RISFusion, content: dict) -> ModelEmaV3 | None:
    """The weights' moving average, as far as the checkpoint of `--resume` brought it; None without that flag."""
    if not args.model_ema_decay:
        return None
    ema = ModelEmaV3(model, decay=args.model_ema_decay)
    if content:
        with naming("resume"):
            checkpoint.load_parts(ema.module, content, args.resume)
    return ema


def open_data_set(args: Namespace, path: str, tokenizer: Tokenizer) -> MMRISDataset:
    """A data set as the networks to train want it."""
    return MMRISDataset(path, tokenizer, args.img_size, masks=not args.train_fuser_only, bad_rows=args.bad_rows)


def training_data(args: Namespace, tokenizer: Tokenizer, device: torch.device):
    """The training loader, whose sampler can go to any sample of any epoch.

    Raises:
        InputError: there are too few rows for a step.
    """
    dataset = open_data_set(args, args.train_parquet, tokenizer)
    loader = training_loader(dataset, args.batch_size, args.grad_accum_steps, seed=args.seed, workers=args.workers,
                             pin_memory=args.pin_mem and can_pin_memory(device))
    if len(dataset) < loader.sampler.step_samples:
        raise InputError(f"{args.train_parquet} has {counted(len(dataset), 'row')}, fewer than the "
                         f"{loader.sampler.step_samples} of one step; lower -b")
    return loader


def validation_data(args: Namespace, tokenizer: Tokenizer, device: torch.device):
    """The validation loader."""
    return evaluation_loader(open_data_set(args, args.val_parquet, tokenizer), args.batch_size, workers=args.workers,
                             pin_memory=args.pin_mem and can_pin_memory(device))


def read_resumed(args: Namespace) -> tuple[dict, dict | None]:
    """The content of the checkpoint of `--resume` and the training state in it; without that flag, nothing."""
    if not args.resume:
        return {}, None
    with naming("resume"):
        content = checkpoint.read(args.resume)
        return content, training_state.unpack(content, args.resume)


def restore(args: Namespace, content: dict, optimizer, scaler, rows: int, step_samples: int
            ) -> tuple[Progress, list[str]]:
    """Fill optimizer and scaler from a checkpoint; return its progress and, in words, what differs from that run."""
    state = content["training"]
    progress = Progress(**state["progress"])
    changes = training_state.changed_settings(checkpoint.stored_args(content), vars(args), state["rows"], rows)
    changes += progress.refit(step_samples)
    with naming("resume"):
        training_state.restore_optimizer(optimizer, state["optimizer"], args.resume)
    scaler.load_state_dict(state["scaler"])
    best_file = os.path.join(args.output_dir, f"model_best_{args.model_id}.pth")
    if not (continues_in_place(args) and os.path.isfile(best_file)):
        progress.best = -math.inf  # the best so far lies in another folder: this one gets one of its own
    return progress, changes


def report_resumed(args: Namespace, progress: Progress, changes: list[str]) -> None:
    """Say where the run resumes, and in what it differs from the run that it resumes."""
    for change in changes:
        logger.warning("WARNING: this run differs from the one it resumes: %s", change)
    if progress.epoch < args.epochs:
        logger.info("%s: resuming at epoch %d, step %d", args.resume, progress.epoch, progress.step)
    else:
        logger.info("%s: this run is finished; raise --epochs for more", args.resume)


def report_epoch(entry: dict) -> None:
    """One line about an epoch, from its entry in log.jsonl."""
    shown = ", ".join(f"{name} {entry[name]:.{digits}f}"
                      for name, digits in (("mIoU", 2), ("oIoU", 2), ("val_total", 4)) if name in entry)
    logger.info("epoch %d: loss %.4f, %s, %.1f samples/s", entry["epoch"], entry["total"], shown,
                entry["samples_per_second"])


def report_end(args: Namespace, progress: Progress) -> None:
    """The last line of a run: how good the best checkpoint is, and where."""
    best = f"val_total {-progress.best:.4f}" if args.train_fuser_only else f"overall IoU {progress.best:.2f}"
    logger.info("%d of %s done; best %s, in %s", progress.epoch, counted(args.epochs, "epoch"), best,
                os.path.join(args.output_dir, f"model_best_{args.model_id}.pth"))


def describe_run(args: Namespace, device: torch.device, model: RISFusion, train_rows: int, val_rows: int,
                 step_samples: int) -> dict:
    """What the run is, as plain values for run.json; also logged."""
    millions = {name: round(sum(p.numel() for p in network.parameters()) / 1e6, 3)
                for name, network in model.networks().items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    precision = args.amp_dtype if args.amp else "tf32" if args.tf32 else "float32"
    logger.info("%s, %s, %s; parameters %s (%.1f M trained)", describe(device),
                counted(distributed.world_size(), "process", "processes"), precision,
                ", ".join(f"{name} {count:.1f} M" for name, count in millions.items()), trained)
    logger.info("%d training and %s; %s of %s, %s a step", train_rows, counted(val_rows, "validation sample"),
                counted(args.epochs, "epoch"), counted(train_rows // step_samples, "step"),
                counted(step_samples, "sample"))
    return {
        "device": describe(device), "processes": distributed.world_size(), "precision": precision,
        "million_parameters": millions, "million_trained": round(trained, 3), "training_samples": train_rows,
        "validation_samples": val_rows, "effective_batch": step_samples, "steps_per_epoch": train_rows // step_samples,
        "resumed_from": args.resume or None, "git_commit": git_commit(), "python": platform.python_version(),
        "torch": torch.__version__, "command": sys.argv, "flags": vars(args)}


def continues_in_place(args: Namespace) -> bool:
    """Whether the files in the output folder are those of the run that is resumed."""
    return bool(args.resume) and os.path.dirname(os.path.abspath(args.resume)) == os.path.abspath(args.output_dir)


def make_room(args: Namespace) -> None:
    """Move what another run left in this one's folders out of the way."""
    if continues_in_place(args):
        return
    set_aside(args.output_dir, RUN_FILES)
    if args.eval_vis_dir:
        set_aside(args.eval_vis_dir, r"epoch_\d+\.png")


def resuming_command() -> str:
    """The command that resumes this run."""
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
