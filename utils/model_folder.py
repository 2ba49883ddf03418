"""A model as a folder, the form in which the Hugging Face hub holds models.

`model.safetensors` has the tensors of all networks, their keys prefixed by the network's name as in PARTS;
`config.json` has what the tensors do not show, and BERT's configuration; `vocab.txt` BERT's vocabulary, a word a line.
"""
import json
import os
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, UsageError
from .text import first_line, printable, printable_value

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocab.txt"
PARTS = {"model": "segmenter", "prefusion_model": "fuser", "bert_model": "text_encoder"}  # by key in a checkpoint
MODEL_TYPE, VERSION = "ris_fusion", 1


def read(folder: str) -> dict[str, Any]:
    """The content of a folder in the form of a checkpoint; what it holds is not checked.

    Args:
        folder: exists.
    Returns:
        The state dicts by their names in a checkpoint, `args`, `epoch`, and with a vocabulary also `bert`, see
        `content.embedded_bert`.
    Raises:
        UsageError: there is no model in the folder.
        InputError: a file is damaged, of another kind or of a later version.
    """
    path = os.path.join(folder, WEIGHTS)
    if not os.path.isfile(path):
        raise UsageError(f"the folder {folder!r} has no {WEIGHTS}; name a folder that export.py --format safetensors "
                         "wrote, or a checkpoint's file")
    config = _read_config(os.path.join(folder, CONFIG))
    content: dict[str, Any] = {key: {} for key in PARTS}
    keys = {name: key for key, name in PARTS.items()}
    for name, tensor in _read_tensors(path).items():
        part, _, rest = name.partition(".")
        if part not in keys:
            raise InputError(f"{path}: the tensor '{printable(name)}' is of none of the networks "
                             f"{', '.join(keys)}; export.py writes no such file")
        content[keys[part]][rest] = tensor
    if not content["bert_model"]:
        del content["bert_model"]
    content |= {"args": config.get("args"), "epoch": config.get("epoch")}
    words = os.path.join(folder, VOCABULARY)
    if os.path.isfile(words):
        content["bert"] = {"config": config.get("bert"), "vocabulary": _read_words(words)}
    return content


def _read_config(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise InputError(f"{path} is absent; a folder that export.py wrote has it")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)})") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        found = printable_value(config.get("model_type")) if isinstance(config, dict) else type(config).__name__
        raise InputError(f"{path} describes another kind of model ({found}), not {MODEL_TYPE!r}")
    if config.get("format_version") != VERSION:
        raise InputError(f"{path} has format version {printable_value(config.get('format_version'))}; this program "
                         f"reads version {VERSION}")
    return config


def _read_tensors(path: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors has errors of its own, and PyTorch's for a type that it lacks
        raise InputError(f"{path} cannot be read ({first_line(error)}); it is damaged or no safetensors file"
                         ) from error


def _read_words(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read().removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the vocabulary cannot be read ({first_line(error)})") from error


def write_weights(content: dict[str, Any], folder: str, dtype: torch.dtype = torch.float32) -> None:
    """Write the state dicts of a checkpoint to a folder.

    Args:
        content: as `read` gives it.
        folder: exists.
        dtype: of matrices and convolution kernels. Vectors and constants keep float32: they take little room, and
            running variances of a batch norm can exceed what float16 can represent.
    Raises:
        InputError: a weight is too large for the type, or the file cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {}
    for key, part in PARTS.items():
        for name, tensor in content[key].items():
            narrow = tensor.is_floating_point() and sum(side > 1 for side in tensor.shape) > 1
            chosen = dtype if narrow else tensor.dtype
            stored = tensor.detach().to("cpu", chosen, copy=True).contiguous()  # a copy, since tensors may share memory
            if chosen != tensor.dtype and not bool(stored.isfinite().all()):
                raise InputError(f"{part}.{name} has values beyond the range of {str(dtype).removeprefix('torch.')}; "
                                 "take bfloat16 or float32")
            tensors[f"{part}.{name}"] = stored
    path = os.path.join(folder, WEIGHTS)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        os.chmod(path, os.stat(folder).st_mode & 0o666)  # safetensors lets nobody else read it
    except Exception as error:  # safetensors has errors of its own; a full disk is the usual reason
        raise InputError(f"{path}: it cannot be written ({first_line(error)}); is the disk full?") from error


def write_description(content: dict[str, Any], folder: str, **more: Any) -> None:
    """Write configuration and vocabulary to a folder.

    Args:
        content: as `read` gives it, with `bert`.
        folder: exists.
        more: further entries of the configuration, plain values, for other programs.
    Raises:
        InputError: the vocabulary cannot be written as a word a line.
    """
    config = {"model_type": MODEL_TYPE, "format_version": VERSION, **more, "epoch": content["epoch"],
              "args": content["args"], "bert": content["bert"]["config"]}
    with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    words = content["bert"]["vocabulary"]
    if odd := [word for word in words if not word or "\n" in word or "\r" in word]:
        raise InputError(f"the vocabulary has the word {printable_value(odd[0])}, which {VOCABULARY} cannot hold")
    with open(os.path.join(folder, VOCABULARY), "w", encoding="utf-8", newline="") as file:
        file.writelines(f"{word}\n" for word in words)
