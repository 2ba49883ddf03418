"""What a run starts from: its BERT, and the weights of its networks, all from a checkpoint or one by one."""
import logging
import os
from dataclasses import replace

from torch import nn

from bert import Tokenizer, build_text_encoder
from models.architecture import Architecture, fusion_method, parse_heads
from utils import checkpoint
from utils.content import embedded_bert, size_of
from utils.errors import InputError, naming
from utils.flags import BERT

logger = logging.getLogger(__name__)

NAMES = {"model": "LAVT", "prefusion_model": "the fuser", "bert_model": "BERT"}  # by key in a checkpoint


def open_tokenizer(folder: str, content: dict, path: str) -> Tokenizer:
    """The tokenizer in a folder, or, where that is the default one and absent, in a checkpoint with content `content`.

    Raises:
        UsageError, InputError: as `bert.Tokenizer`.
    """
    if _is_absent_default(folder) and (bert := embedded_bert(content, path)):
        return Tokenizer.from_vocabulary(bert["vocabulary"], path)
    with naming("bert_tokenizer"):
        return Tokenizer(folder)


def open_text_encoder(folder: str, content: dict, path: str) -> nn.Module:
    """The text encoder in a folder, or, where that is the default one and absent, as a checkpoint describes it.

    Its weights are read from the folder unless the checkpoint has them.

    Raises:
        UsageError, InputError: as `bert.build_text_encoder`.
    """
    weight_bytes = size_of(content["bert_model"]) if isinstance(content.get("bert_model"), dict) else None
    if "bert_model" in content and _is_absent_default(folder) and (bert := embedded_bert(content, path)):
        return build_text_encoder(config=bert["config"], source=path, weight_bytes=weight_bytes)
    with naming("ck_bert"):
        return build_text_encoder(folder, pretrained="bert_model" not in content, weight_bytes=weight_bytes)


def _is_absent_default(folder: str) -> bool:
    return folder == BERT and not os.path.isdir(folder)


def load_pretrained(model: nn.Module, *, swin: str = "", lavt_one: str = "", lavt_head: bool = False, fuser: str = ""
                    ) -> None:
    """Fill networks of a `models.RISFusion` one by one; of an empty path they keep their weights.

    Args:
        swin: Swin's ImageNet weights, for the backbone.
        lavt_one: LAVT checkpoint, for backbone and BERT.
        lavt_head: take its classifier too.
        fuser: bare state dict or checkpoint, for the fuser.
    Raises:
        UsageError, InputError: naming the argument of `train_with_lavt.py` and the file.
    """
    if swin and model.segmenter is not None:
        with naming("pretrained_swin_weights"):
            checkpoint.load_swin_weights(model.segmenter.backbone, swin)
    if lavt_one:
        with naming("init_from_lavt_one"):
            try:
                checkpoint.load_lavt_one(model, lavt_one, with_head=lavt_head)
            except InputError as error:
                if "prefusion_model" not in checkpoint.read(lavt_one):
                    raise
                raise InputError(f"{lavt_one} is a checkpoint of RIS-FUSION, not of LAVT alone; to start from all its "
                                 "networks, give it as init_from") from error
    if fuser:
        with naming("ck_prefusion"):
            checkpoint.load_fuser(model.fuser, fuser)


def check_fusion_method(content: dict, method: str, path: str) -> None:
    """Check that a checkpoint was trained with the fusion method of this run.

    Raises:
        InputError: it was not; the message names both.
    """
    if "prefusion_model" in content and (theirs := fusion_method(content)) != method:
        raise InputError(f"{path} was trained with prefusion_model {theirs}, and this run has {method}; set "
                         f"prefusion_model to {theirs}, or start from another checkpoint")


def window_of(content: dict, architecture: Architecture) -> Architecture:
    """`architecture` with the attention window of a checkpoint's LAVT; unchanged if none can be seen there."""
    try:
        return replace(architecture, window=_sizes(content).window)
    except (AttributeError, LookupError, TypeError, ValueError):
        return architecture


def load_networks(model: nn.Module, architecture: Architecture, content: dict, path: str) -> None:
    """Fill all networks of `model` from a checkpoint in the released format; BERT stays as it is if the file has none.

    Args:
        model: a `models.RISFusion`.
        architecture: what it was built from.
        content: as `utils.checkpoint.read` gives it.
    Raises:
        InputError: a network is absent or does not fit; the message says which would, and what to set.
    """
    networks = {key: getattr(model, name) for key, name in checkpoint.PARTS.items()
                if getattr(model, name) is not None and (key != "bert_model" or key in content)}
    fitting = [NAMES[key] for key, network in networks.items() if _fits(network, content.get(key))]
    problems = [f"{NAMES[key]} {'differs' if key in content else 'is absent'}" for key in networks
                if NAMES[key] not in fitting]
    advice = _advice(content, architecture, with_lavt=model.segmenter is not None)
    if "bert_model" in networks and NAMES["bert_model"] not in fitting:
        advice.append("set ck_bert and bert_tokenizer to the BERT that it was trained with")
    if problems or advice:
        raise InputError(
            f"{path} does not fit this run: {', '.join(problems) or 'PWAM had other heads'}; "
            f"{' and '.join(fitting) + ' would fit' if fitting else 'nothing in it fits'}; "
            f"{', '.join(advice) or 'its sizes are none that can be built here'}")
    if "bert_model" not in content:
        logger.warning("WARNING: %s has no 'bert_model'; the text encoder starts from its own folder", path)
    for key, network in networks.items():
        checkpoint.load_strictly(network, content[key], f"{key!r} in {path}")
        logger.info("%s → %s: %d tensors taken", path, NAMES[key], len(content[key]))


def _fits(network: nn.Module, tensors) -> bool:
    """Whether a state dict has all tensors of a network; what follows from the window's size may be absent."""
    return isinstance(tensors, dict) and all(
        key.endswith("relative_position_index") if key not in tensors else
        getattr(tensors[key], "shape", None) == tensor.shape for key, tensor in network.state_dict().items())


def _sizes(content: dict) -> Architecture:
    return Architecture.from_checkpoint(content)


def _advice(content: dict, architecture: Architecture, with_lavt: bool) -> list[str]:
    """Which settings to change so that networks with `architecture` fit a file; none where it is not of known sizes."""
    try:
        theirs = _sizes(content)
        heads = parse_heads(str(checkpoint.stored_args(content).get("mha") or ""))
    except (AttributeError, LookupError, TypeError, ValueError):  # without LAVT, or of unknown sizes
        return []
    names = ["swin_type"] * with_lavt + ["prefusion_base_ch"] * (theirs.prefusion_model == "unet_fuser")
    advice = [f"set {name} to {getattr(theirs, name)}" for name in names
              if getattr(theirs, name) != getattr(architecture, name)]
    if not with_lavt:
        return advice
    if theirs.window != architecture.window:
        advice.append("set window12" if theirs.window == 12 else "leave out window12")
    if heads != architecture.pwam_heads:
        advice.append(f"set mha to {'-'.join(map(str, heads))}")
    return advice
