"""Reading and writing weights: the released checkpoint format, Swin and LAVT files, and our own."""
import argparse
import contextlib
import logging
import math
import os
import pickle
import re
import warnings
import zipfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import foreign, model_folder
from .content import check_finite, check_structure
from .errors import InputError, UsageError
from .files import replacing
from .model_folder import PARTS
from .text import counted, first_line, printable

logger = logging.getLogger(__name__)

MOST_EXPANSION = 20  # of a file that somebody compressed; weights hardly shrink


def read(path: str) -> dict:
    """Load a file that PyTorch saved, or a folder of `model_folder`, on the CPU and without running any code in it.

    Besides tensors and plain values only what `foreign.admitted` lists is read. The content is checked, see
    `content.check_structure`, and state dicts are given the form that our networks expect, see `foreign.normalise`.

    Args:
        path: the file or folder.
    Raises:
        UsageError: there is no such file, or no model in the folder.
        InputError: it is damaged, holds anything else or weights that are not finite, is no dict, or expands to
            many times its size.
    """
    content = model_folder.read(path) if os.path.isdir(path) else _read_file(path)
    check_structure(content, path)
    content = foreign.normalise(content, path)
    check_finite(content, path)
    return content


def _read_file(path: str):
    """What PyTorch saved to a file."""
    if not os.path.isfile(path):
        raise UsageError(f"there is no file {path!r}; README.md, \"Data and weights\", says where to get it")
    _refuse_expanding(path)
    try:
        with foreign.admitted(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged file can fail anywhere in PyTorch's reader
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise InputError(f"{path} holds more than weights and plain values, namely {printable(found[1])}; "
                             "it was not opened, since loading that could run code") from error
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise InputError(f"{path} cannot be read{reason}; it is damaged or was not saved by PyTorch") from error


def _refuse_expanding(path: str) -> None:
    """Refuse an archive whose few bytes would fill the memory; PyTorch itself writes tensors uncompressed."""
    with contextlib.suppress(OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # the reader says it better
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_EXPANSION * os.path.getsize(path):
            raise InputError(f"{path} is a compressed archive that expands to {unpacked} bytes, over {MOST_EXPANSION} "
                             "times its size; it was not opened, since that could fill the memory")


def save(content: dict, path: str) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        InputError: it cannot be written; a file that was there is still there.
    """
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's writer does not say why; a full disk is the usual reason
            raise InputError(f"{path}: it cannot be written ({first_line(error)}); is the disk full?") from error


def pack(model: nn.Module, epoch: int, args: dict, **more) -> dict:
    """A checkpoint in the released format.

    Args:
        model: with `segmenter` (or None), `fuser` and `text_encoder`.
        epoch: number of the last finished epoch, from 0; -1 before.
        args: plain values by flag name.
        more: further entries, plain values or state dicts; readers of the format ignore them.
    """
    return {**weights(model), "epoch": epoch, "args": args, **more}


def weights(model: nn.Module) -> dict[str, dict]:
    """The state dicts of the networks there are, by their names in the released format."""
    return {key: getattr(model, name).state_dict() for key, name in PARTS.items() if getattr(model, name) is not None}


def load_parts(model: nn.Module, content: dict, path: str) -> None:
    """Fill all networks of `model` from a checkpoint in the released format.

    Raises:
        InputError: one is absent or does not fit.
    """
    if model.segmenter is not None and "model" not in content and "prefusion_model" in content:
        raise InputError(f"{path} holds a fuser without LAVT, as training the fuser alone leaves it; train the "
                         "fuser alone again, or start a joint run from its fuser")
    for key, name in PARTS.items():
        if getattr(model, name) is not None:
            load_strictly(getattr(model, name), _part(content, key, path), f"{key!r} in {path}")


def stored_args(content: dict) -> dict:
    """The plain values in the `args` of a checkpoint by flag; they are a Namespace in the released one, a dict in ours.

    What is no number, text, truth value, None or a list of them, such as a device, is left out.
    """
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, dict):
        return {}
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in args.items() if isinstance(name, str) and (
        isinstance(value, plain) or
        (isinstance(value, list | tuple) and all(isinstance(item, plain) for item in value)))}


def load_strictly(module: nn.Module, tensors: dict, source: str) -> None:
    """Fill all of `module` from `tensors`, key by key.

    Swin's `relative_position_index`, which follows from the window size, may be absent.

    Raises:
        InputError: a key is absent, unknown or of another shape, or an index has other values; `source` says in the
            message what was being loaded.
    """
    expected = module.state_dict()
    derived = {key: value for key, value in expected.items()
               if key.endswith("relative_position_index") and key not in tensors}
    if derived:
        logger.info("%s: relative_position_index is absent in %s and was computed from the window size", source,
                 counted(len(derived), "block"))
        tensors = tensors | derived
    unlike = [key for key in expected if key not in tensors or not _same_form(tensors[key], expected[key])]
    unknown = [key for key in tensors if key not in expected]
    if unlike:
        key = unlike[0]
        found = f"has shape {_form(tensors[key])}" if key in tensors else "is absent"
        raise InputError(f"{source} does not fit: {len(unlike)} of {len(expected)} tensors differ; {key} {found}, "
                         f"expected {_form(expected[key])}")
    wrong = [key for key in expected if key.endswith("relative_position_index") and key not in derived
             and not torch.equal(tensors[key], expected[key].to(tensors[key].dtype))]
    if wrong:
        raise InputError(f"{source} does not fit: {wrong[0]} does not have the values that follow from the window size")
    if unknown:
        raise InputError(f"{source} does not fit: the model lacks {len(unknown)} of its tensors, "
                         f"{printable(unknown[0])} first")
    module.load_state_dict(tensors)


def _same_form(value: Any, expected: Tensor) -> bool:
    """Whether `value` is a tensor of the expected shape and kind, floats or whole numbers."""
    return (isinstance(value, Tensor) and value.shape == expected.shape
            and value.is_floating_point() == expected.is_floating_point())


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of a {type(value).__name__}"
    return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else " of whole numbers")


def load_matching(module: nn.Module, tensors: dict, source: str) -> None:
    """Fill `module` with the tensors that fit and log how many were loaded, resized and skipped.

    Relative position bias tables of another window size are resized bicubically.

    Raises:
        InputError: nothing fits.
    """
    expected = module.state_dict()
    weights = {name for name, _ in module.named_parameters()}
    loaded, resized = {}, {}
    for key, tensor in tensors.items():
        if key not in expected:
            continue
        if _same_form(tensor, expected[key]):
            loaded[key] = tensor
        elif key.endswith("relative_position_bias_table") and _is_bias_table(tensor, expected[key].shape[1]):
            resized[key] = resize_bias_table(tensor, len(expected[key]))
    if not weights & (loaded.keys() | resized.keys()):
        raise InputError(f"{source}: none of {len(tensors)} tensors fits the model; is it of another kind or size?")
    module.load_state_dict(loaded | resized, strict=False)
    initial = len(weights - loaded.keys() - resized.keys())
    logger.info("%s: %d tensors loaded, %d resized, %d skipped; %d of the model keep their initial values", source,
             len(loaded), len(resized), len(tensors) - len(loaded) - len(resized), initial)


def _is_bias_table(tensor: Tensor, heads: int) -> bool:
    """Whether the shape is ((2w−1)², heads) for some window size w."""
    return (tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] == heads
            and len(tensor) > 0 and math.isqrt(len(tensor)) ** 2 == len(tensor))


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """((2w−1)², heads) of one window size to (rows, heads) of another, bicubically over the two offsets."""
    old, new = round(len(table) ** 0.5), round(rows ** 0.5)
    grid = table.t().reshape(1, -1, old, old).float()
    return F.interpolate(grid, size=(new, new), mode="bicubic").reshape(-1, rows).t()


def load_swin_weights(backbone: nn.Module, path: str) -> None:
    """Fill a backbone from Swin's ImageNet weights, a dict whose `model` has keys without the `backbone.` prefix.

    Raises:
        UsageError, InputError: as `read`; also when the file is of another kind or nothing in it fits.
    """
    load_matching(backbone, _part(read(path), "model", path), f"{path} → backbone")


def load_lavt_one(model: nn.Module, path: str, with_head: bool) -> None:
    """Fill backbone and text encoder, and with `with_head` the classifier, from a `lavt_one` checkpoint.

    Raises:
        UsageError, InputError: as `read`; also when the file is of another kind or nothing in a part of it fits.
    """
    tensors = _part(read(path), "model", path)
    parts = {} if model.segmenter is None else {"backbone": model.segmenter.backbone}
    parts["text_encoder"] = model.text_encoder
    if with_head:
        parts["classifier"] = model.segmenter.classifier
    for prefix, module in parts.items():
        dot = f"{prefix}."
        part = {key.removeprefix(dot): tensor for key, tensor in tensors.items() if key.startswith(dot)}
        load_matching(module, part, f"{path} → {prefix}")


def load_fuser(fuser: nn.Module, path: str) -> None:
    """Fill the fuser from a state dict, or from the `prefusion_model` of a checkpoint.

    Raises:
        UsageError, InputError: as `read`; also when the file's fuser is not of this width.
    """
    content = read(path)
    tensors = content if content.get("prefusion_model") is None else content["prefusion_model"]
    if not tensors:
        raise InputError(f"{path} has no weights of a fuser: it was trained with a fusion method without parameters")
    load_strictly(fuser, tensors, f"the fuser in {path}")
    logger.info("%s → fuser: %d tensors loaded, 0 resized, 0 skipped", path, len(tensors))


def _part(content: dict, key: str, path: str) -> dict:
    if not isinstance(content.get(key), dict):
        raise InputError(f"{path} has no {key!r} entry; its keys are {', '.join(map(printable, list(content)[:5]))}")
    return content[key]
