"""An export from checkpoint to finished folder. `args` is the checked command line of `export.py` throughout."""
import os
from argparse import Namespace
from dataclasses import asdict

import torch

from bert import plain_config
from evaluation.inference import LoadedCheckpoint, load_checkpoint
from models import Architecture
from models.architecture import parse_heads
from utils import checkpoint
from utils.color import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import UsageError, naming
from utils.files import replacing_folder
from utils.flags import checkpoint_flags
from utils.model_folder import CONFIG, VOCABULARY, WEIGHTS, write_description, write_weights
from utils.text import printable

from . import card, graph

FILES = {"safetensors": WEIGHTS, "onnx": "model.onnx", "pt2": "model.pt2"}  # by format
ALL_FILES = {*FILES.values(), CONFIG, VOCABULARY, card.NAME}


def export(args: Namespace) -> None:
    """Write the folder `--to`, whole or not at all.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence; there is no new folder then.
    """
    check_place(args.to, args.overwrite)
    if args.format == "onnx":
        graph.require_packages()
    with naming("ckpt"):
        loaded = load_checkpoint(args.ckpt, must_fuse=args.format != "safetensors", **checkpoint_flags(args))
    metrics = card.read_metrics(args.metrics) if args.metrics else None
    content = to_content(loaded)
    lines = []
    with replacing_folder(args.to) as folder:
        path = os.path.join(folder, FILES[args.format])
        if args.format == "safetensors":
            write_weights(content, folder, getattr(torch, args.dtype))
            if args.dtype != "float32":
                lines = [f"matrices and kernels are stored in {args.dtype}; `python test.py --ckpt {args.to}` measures "
                         "what that does to mIoU, docs/export.md has the figures of one model"]
        else:
            lines = graph.write(loaded, path, args.format, args.check_parquet)
        write_description(content, folder, **describe(content, loaded, args))
        card.write(folder, content, loaded.about, args, metrics, asdict(architecture(content, loaded)))
        size = os.path.getsize(path)
    for line in lines:
        print(line)
    print(f"in {args.to}: {FILES[args.format]} ({size / 1e6:.1f} MB), {CONFIG}, {VOCABULARY}, {card.NAME}")


def check_place(folder: str, overwrite: bool) -> None:
    """Check that a folder can be written without losing what this script did not write.

    Raises:
        UsageError: it cannot.
    """
    if not folder:
        raise UsageError("the path is empty; name a folder", "to")
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UsageError(f"{printable(folder)} is there already and is no folder; choose another place", "to")
    there = set(os.listdir(folder))
    if there and not overwrite:
        raise UsageError(f"{printable(folder)} is there already; choose another place, or --overwrite", "to")
    if others := sorted(there - ALL_FILES):
        raise UsageError(f"{printable(folder)} holds {printable(others[0])}, which is not of an export and would be "
                         "lost; choose another place", "to")


def to_content(loaded: LoadedCheckpoint) -> dict:
    """The model in the form of a checkpoint that carries its BERT, without what only this machine knows."""
    stored = {name: value for name, value in checkpoint.stored_args(loaded.about).items() if not is_path(value)}
    return {**checkpoint.weights(loaded.model), "epoch": loaded.about.get("epoch"),
            "args": stored | {"img_size": loaded.img_size, "mha": loaded.mha},
            "bert": {"config": plain_config(loaded.model.text_encoder), "vocabulary": loaded.tokenizer.vocabulary()}}


def is_path(value) -> bool:
    """Whether a flag's value is that of a file or folder, which another machine does not have and need not know."""
    return isinstance(value, str) and ("/" in value or "\\" in value or value.endswith((".pth", ".parquet")))


def architecture(content: dict, loaded: LoadedCheckpoint) -> Architecture:
    """The sizes of the networks."""
    return Architecture.from_checkpoint(content, parse_heads(loaded.mha))


def describe(content: dict, loaded: LoadedCheckpoint, args: Namespace) -> dict:
    """What `config.json` tells other programs; ours reads these from the tensors."""
    return {"architecture": asdict(architecture(content, loaded)), "dtype": args.dtype,
            "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
