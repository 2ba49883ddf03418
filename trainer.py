"""A whole training run: data, model, optimizer, resuming, and the loop over epochs.

`args` is the command line of `train_with_lavt.py` throughout, complete and checked.
"""
import logging
import os
import sys
from argparse import Namespace
from dataclasses import asdict

import torch
from timm.utils import ModelEmaV3

from bert import Tokenizer, check_vocabulary, plain_config
from data import MMRISDataset, evaluation_loader, object_sizes, training_loader
from data.parquet_rows import find_parquet
from data.row_cache import remove_copies
from engine import evaluate, evaluate_fusion, train_one_epoch
from evaluation.metrics import metrics_table
from models import Architecture, build_criterion
from models.build import assemble
from models.ris_fusion import RISFusion
from training import advice, start
from training import state as training_state
from training.autosave import Autosave, Stopped
from training.description import describe_end, describe_epoch, describe_run, resuming_command
from training.lock import locked
from training.memory import lower_memory, out_of_memory_says
from training.optimizer import build_optimizer, learning_rates, polynomial_decay, trained_networks
from training.progress import LEAST_IOU, Progress
from training.run_record import RunRecord
from utils import checkpoint, distributed
from utils.device import (
    allow_tf32,
    can_pin_memory,
    can_sync_batchnorm,
    grad_scaler,
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

VALIDATION_PICTURES = 8
RUN_FILES = r"log\.jsonl|run\.json|curves\.png|tensorboard|(last|epoch_\d+|model_best_.*)\.pth"

logger = logging.getLogger(__name__)


def run_job(args: Namespace) -> None:
    """Train, or with `--eval_only` validate, as this process of one or several; exits when a signal stopped the run.

    Raises:
        UsageError, InputError: what cannot be carried out, in one sentence.
    """
    device = select_device(args.device, distributed.local_rank())
    if args.tf32:
        allow_tf32(device)
    with distributed.job(device, args.dist_timeout):
        seed_everything(args.seed)
        try:
            batch = f"{counted(args.batch_size, 'sample')} of {args.img_size}×{args.img_size} pixels on {device}"
            with out_of_memory_says(batch, ways_to_save_memory(args)):
                if args.eval_only:
                    evaluate_only(args, device)
                else:
                    make_folders(args)
                    with locked(args.output_dir):
                        train(args, device)
        except Stopped as stop:
            where = f"the run so far is in {os.path.join(args.output_dir, 'last.pth')}"
            logger.info("stopped by %s; %s; to resume it:\n  %s", stop, where if stop.saved else
                        "its latest state could not be written", resuming_command(sys.argv, os.environ))
            sys.exit(128 + stop.signal)


def train(args: Namespace, device: torch.device) -> None:
    """Train from the start or from where the resumed run stopped, to the end of the last epoch."""
    main_process, several = distributed.rank() == 0, distributed.world_size() > 1
    dtype = getattr(torch, args.amp_dtype) if args.amp else None
    content, state = read_resumed(args)
    source = content or read_initial(args)  # the checkpoint that all weights come from, if there is one

    # Model: before the data, so that a checkpoint of other sizes is refused first
    tokenizer = start.open_tokenizer(args.bert_tokenizer, source, args.resume or args.init_from)
    with out_of_memory_says(f"these networks on {device}", ["lower --prefusion_base_ch", "take a smaller --swin_type"]):
        model = build_networks(args, tokenizer, source, state.get("weights") if state else None)
        if can_sync_batchnorm(device) and several:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    warn_if_slow(device, dtype)
    lower_memory(model, device, activation_checkpointing=args.grad_checkpointing)
    ema = build_ema(args, model, content)
    averaged = ema.module if ema else model  # what is validated and stored as the model
    if args.torchcompile:
        model.compile()
    wrapped = distributed.wrap(model, device, args.bf16_gradients)
    criterion = build_criterion(args, distributed.mean if several else None)

    # Data
    train_loader, val_loader = training_data(args, tokenizer, device), validation_data(args, tokenizer, device)
    rows, step_samples = len(train_loader.dataset), train_loader.sampler.step_samples
    epoch_steps = rows // step_samples

    # Optimizer, and the state of a resumed run
    optimizer = build_optimizer(model, device, lr_seg=args.lr_seg, wd_seg=args.wd_seg, lr_pf=args.lr_pf,
                                wd_pf=args.wd_pf, amsgrad=args.amsgrad)
    scaler = grad_scaler(device, dtype)
    progress = state["progress"] if state else Progress()
    changes = resume(args, content, state, optimizer, scaler, rows, step_samples) if state else []
    scheduler = polynomial_decay(optimizer, args.epochs * epoch_steps, progress.epoch * epoch_steps + progress.step)
    seed_everything(args.seed + distributed.rank())  # dropout differs between processes
    if state:
        changes += training_state.restore_random(state["random"], device, args.resume)
        report_resumed(args, progress, changes)

    # Files of the run
    if main_process:
        move_earlier_run(args)
    record = RunRecord(args.output_dir, args.eval_vis_dir, scheduler.last_epoch, active=main_process)
    precision = args.amp_dtype if args.amp else "tf32" if args.tf32 else "float32"
    record.start(describe_run(vars(args), sys.argv, device, model, precision=precision, training_rows=rows,
                              validation_rows=len(val_loader.dataset), step_samples=step_samples))
    if main_process and not args.train_fuser_only:
        report_small_objects(args, val_loader.dataset)

    bert = {"config": plain_config(model.text_encoder), "vocabulary": tokenizer.vocabulary()}

    def pack(**more) -> dict:
        return checkpoint.pack(averaged, progress.epoch - 1, vars(args), bert=bert, **more)

    def pack_all() -> dict:
        """A checkpoint that can be resumed; all processes call it together."""
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
        autosave.save()  # before validation, which may take long and is stopped by a signal at once

        distributed.share_buffers(averaged)
        metrics, sheet, bad_rows = validate(args, averaged, val_loader, device, dtype, autosave.check)
        progress.history.append(progress.entry(metrics, bad_rows))
        logger.info(describe_epoch(progress.history[-1]))
        progress.next_epoch()
        record.epoch(progress.history, sheet, scheduler.last_epoch)
        if progress.is_best(metrics) and record.checkpoint(best_name(args), pack(metrics=metrics)):
            if progress.decided_by_loss(metrics):
                logger.warning("WARNING: overall IoU is below %g %%; %s now holds epoch %d, whose validation loss is "
                               "lower", LEAST_IOU, best_name(args), progress.epoch - 1)
            progress.keep_as_best(progress.epoch - 1, metrics)
        if args.keep:
            record.checkpoint(f"epoch_{progress.epoch - 1:03d}.pth", pack_all())
            record.keep_latest(args.keep)
        autosave.save()
    record.close()
    if args.remove_cache and main_process:
        remove_copies(find_parquet(args.train_parquet), args.cache_dir)
    logger.info(describe_end(progress, args.epochs, os.path.join(args.output_dir, best_name(args))))
    if record.unwritten:
        raise InputError(f"these files could not be written, see the warnings above: {', '.join(record.unwritten)}; "
                         "free space or name another folder, then resume the run", "output-dir")


def evaluate_only(args: Namespace, device: torch.device) -> None:
    """Print how good the checkpoint of `--resume` is on the validation set."""
    with naming("resume"):
        content = checkpoint.read(args.resume)
    tokenizer = start.open_tokenizer(args.bert_tokenizer, content, args.resume)
    loader = validation_data(args, tokenizer, device)
    model = build_networks(args, tokenizer, content).to(device)
    metrics, _, _ = validate(args, model, loader, device, getattr(torch, args.amp_dtype) if args.amp else None)
    if distributed.rank() == 0:
        print(f"{args.resume} on {args.val_parquet}\n{metrics_table(metrics)}")


def validate(args: Namespace, model: RISFusion, loader, device: torch.device, dtype=None, on_batch=None):
    """Evaluate on the validation set.

    Args:
        on_batch: called after each batch.
    Returns:
        The metrics, the first samples as a contact sheet, (H, W, 3) uint8, and the messages about rows left out.
    """
    bad_rows, criterion = [], build_criterion(args)
    sheet = SampleSheet(loader.dataset.questions, VALIDATION_PICTURES)

    def add_to_sheet(batch, output):
        sheet.add(batch, output)
        if on_batch is not None:
            on_batch()

    with torch.compiler.set_stance("force_eager"):  # compiling for evaluation as well would take longer than it saves
        if args.train_fuser_only:
            metrics = evaluate_fusion(model, criterion, loader, device, add_to_sheet, bad_rows, dtype)
        else:
            metrics, counts = evaluate(model, loader, device, on_batch=add_to_sheet, bad=bad_rows, dtype=dtype,
                                       criterion=criterion)
            if problem := advice.on_finding_nothing(counts, args.seg_loss):
                logger.warning("WARNING: %s", problem)
    for message in bad_rows:
        logger.warning("WARNING: left out: %s", message)
    sheet.gather()
    return metrics, sheet.page(), bad_rows


def build_networks(args: Namespace, tokenizer: Tokenizer, source: dict, weights: dict | None = None) -> RISFusion:
    """The joint model with the weights to start from, frozen as the flags say.

    Args:
        source: content of the checkpoint of `--resume`, else of `--init_from`, else empty.
        weights: state dicts to resume from where those of `source` are averaged ones.
    """
    if args.resume or args.init_from:
        with naming("resume" if args.resume else "init_from"):
            start.check_fusion_method(source, args.prefusion_model, args.resume or args.init_from)
    architecture = resolve_architecture(args, source)
    text_encoder = start.open_text_encoder(args.ck_bert, source, args.resume or args.init_from)
    with naming("bert_tokenizer"):
        check_vocabulary(tokenizer, text_encoder)
    model = assemble(architecture, text_encoder, segment=not args.train_fuser_only)
    if args.resume:
        with naming("resume"):
            checkpoint.load_parts(model, weights or source, args.resume)
    elif args.init_from:
        with naming("init_from"):
            start.load_networks(model, architecture, source, args.init_from)
    else:
        start.load_pretrained(model, swin=args.pretrained_swin_weights, lavt_one=args.init_from_lavt_one,
                              lavt_head=args.load_lavt_head, fuser=args.ck_prefusion)
    fuser_text = checkpoint.stored_args(source).get("fuser_text") if args.eval_only else args.fuser_text
    if fuser_text == "none":
        model.fix_fuser_sentence(*tokenizer([""]))
    model.detach_fused = args.detach_fused
    if args.freeze_bert or args.train_fuser_only:
        model.freeze(model.text_encoder)
    if args.freeze_backbone:
        model.freeze(model.segmenter.backbone)
    return model


def resolve_architecture(args: Namespace, source: dict) -> Architecture:
    """The sizes of the networks; sets `args.window12` to what was decided, so that checkpoints store that.

    With `--init_from` no Swin file is read, so the window is not that of the file's name but that of the checkpoint.
    """
    try:
        architecture = Architecture.from_flags(args)
    except ValueError as error:
        raise UsageError(str(error), "mha") from error
    if args.init_from and not args.window12:
        architecture = start.window_of(source, architecture)
    args.window12 = architecture.window == 12
    return architecture


def build_ema(args: Namespace, model: RISFusion, content: dict) -> ModelEmaV3 | None:
    """The moving average of the weights, resumed if there is something to resume; None without the flag."""
    if not args.model_ema_decay:
        return None
    ema = ModelEmaV3(model, decay=args.model_ema_decay)
    if content:
        with naming("resume"):
            checkpoint.load_parts(ema.module, content, args.resume)
    return ema


def open_data_set(args: Namespace, path: str, tokenizer: Tokenizer, **more) -> MMRISDataset:
    """A data set as the networks to train need it; `more` arguments of `MMRISDataset`."""
    return MMRISDataset(path, tokenizer, args.img_size, masks=not args.train_fuser_only, bad_rows=args.bad_rows,
                        fused=args.prefusion_model == "given", **more)


def training_data(args: Namespace, tokenizer: Tokenizer, device: torch.device):
    """The training loader, whose sampler can start at any sample of any epoch.

    Raises:
        InputError: there are too few rows for a step.
    """
    dataset = open_data_set(args, args.train_parquet, tokenizer, cache_dir=args.cache_dir)
    loader = training_loader(dataset, args.batch_size, args.grad_accum_steps, seed=args.seed, workers=args.workers,
                             pin_memory=args.pin_mem and can_pin_memory(device))
    if len(dataset) < loader.sampler.step_samples:
        raise InputError(f"{args.train_parquet} has {counted(len(dataset), 'row')}, fewer than the "
                         f"{loader.sampler.step_samples} of one step; lower -b")
    return loader


def validation_data(args: Namespace, tokenizer: Tokenizer, device: torch.device):
    """The validation loader."""
    dataset = open_data_set(args, args.val_parquet, tokenizer, exact=True)
    return evaluation_loader(dataset, args.batch_size, workers=args.workers,
                             pin_memory=args.pin_mem and can_pin_memory(device))


def read_resumed(args: Namespace) -> tuple[dict, dict | None]:
    """The content of the checkpoint of `--resume` and the training state in it; without that flag, nothing."""
    if not args.resume:
        return {}, None
    with naming("resume"):
        content = checkpoint.read(args.resume)
    state = training_state.unpack(content, args.resume)
    if state is None:
        raise InputError(f"{args.resume} holds weights but no state of a training run, as last.pth does; to start a "
                         "new run from them, name the file with --init_from, or with --ck_prefusion for its fuser "
                         "alone", "resume")
    training_state.check_intact(args.resume)
    return content, state


def read_initial(args: Namespace) -> dict:
    """The content of the checkpoint of `--init_from`; without that flag, nothing."""
    with naming("init_from"):
        return checkpoint.read(args.init_from) if args.init_from else {}


def resume(args: Namespace, content: dict, state: dict, optimizer, scaler, rows: int, step_samples: int) -> list[str]:
    """Fill optimizer and scaler from a training state and adapt its progress; return in words what differs now."""
    progress = state["progress"]
    changes = training_state.changed_settings(checkpoint.stored_args(content), vars(args), state["rows"], rows)
    changes += progress.refit(step_samples)
    training_state.restore(state, optimizer, scaler, args.resume)
    if not (continues_in_place(args) and os.path.isfile(os.path.join(args.output_dir, best_name(args)))):
        progress.forget_best()  # its checkpoint is in another folder; this one gets its own
    return changes


def report_small_objects(args: Namespace, dataset: MMRISDataset) -> None:
    """Warn where most objects are small, with what helps."""
    shares = object_sizes.first_shares(dataset)
    if problem := object_sizes.small_objects(shares, args.img_size, args.seg_loss):
        logger.warning("WARNING: the first %s: %s", counted(len(shares), "validation sample"), problem)


def report_resumed(args: Namespace, progress: Progress, changes: list[str]) -> None:
    """Print where the run resumes, and how its settings differ from those of the run that it resumes."""
    for change in changes:
        logger.warning("WARNING: this run differs from the one it resumes: %s", change)
    if progress.epoch < args.epochs:
        logger.info("%s: resuming at epoch %d, step %d", args.resume, progress.epoch, progress.step)
    else:
        logger.info("%s: this run is finished; raise --epochs for more", args.resume)


def best_name(args: Namespace) -> str:
    """The name of the best checkpoint."""
    return f"model_best_{args.model_id}.pth"


def make_folders(args: Namespace) -> None:
    """Make the folders of the run."""
    make_folder(args.output_dir, "--output-dir")
    if args.eval_vis_dir:
        make_folder(args.eval_vis_dir, "--eval_vis_dir")


def continues_in_place(args: Namespace) -> bool:
    """Whether the output folder is that of the run that is resumed."""
    return bool(args.resume) and os.path.dirname(os.path.abspath(args.resume)) == os.path.abspath(args.output_dir)


def move_earlier_run(args: Namespace) -> None:
    """Move the files of another run out of this run's folders."""
    if continues_in_place(args):
        return
    set_aside(args.output_dir, RUN_FILES)
    if args.eval_vis_dir:
        set_aside(args.eval_vis_dir, r"epoch_\d+\.png")


def ways_to_save_memory(args: Namespace) -> list[str]:
    """How a step can take less memory, in words, without what the flags say already."""
    ways = ["lower -b (and raise --grad-accum-steps by the same factor)"] if args.batch_size > 1 else []
    unused = [flag for flag, used in (("--amp", args.amp), ("--grad-checkpointing", args.grad_checkpointing))
              if not (used or args.eval_only)]
    return [*ways, *([f"set {' or '.join(unused)}"] if unused else []), "lower --img_size"]
