"""From flags or from a checkpoint to a model, from flags to its loss."""
import logging
from dataclasses import replace
from typing import Any

from torch import nn

from bert import build_text_encoder
from utils.checkpoint import load_strictly, load_swin_weights
from utils.content import size_of
from utils.errors import InputError, UsageError
from utils.text import printable

from .architecture import Architecture
from .fuser import UNetFuser
from .fusion_rules import FusionRule
from .lavt import LAVT
from .losses import Average, JointCriterion, LossWeights
from .ris_fusion import RISFusion
from .swin import LanguageSwin

logger = logging.getLogger(__name__)


def build_model(flags: Any, pretrained: bool = True, segment: bool = True) -> RISFusion:
    """The joint model that the training flags describe.

    Args:
        flags: anything with the attributes that `Architecture.from_flags` reads, and `ck_bert` (folder with BERT's
            configuration and weights; empty: BERT-base from random weights) and `pretrained_swin_weights` (file; empty:
            random weights).
        pretrained: False reads no weights, only BERT's configuration; for filling in a checkpoint afterwards.
        segment: False builds text encoder and fuser alone.
    Returns:
        A model with `text_encoder`, `fuser` and `segmenter`, whose state dicts have the keys of the released
        checkpoint's `bert_model`, `prefusion_model` and `model`.
    Raises:
        UsageError: a file or folder does not exist.
        InputError: its content cannot be used.
        ValueError: the flags contradict each other, see `Architecture`.
    """
    architecture = Architecture.from_flags(flags)
    model = assemble(architecture, build_text_encoder(flags.ck_bert, pretrained), segment)
    if pretrained and model.segmenter is not None and flags.pretrained_swin_weights:
        load_swin_weights(model.segmenter.backbone, flags.pretrained_swin_weights)
    return model


def assemble(architecture: Architecture, text_encoder: nn.Module, segment: bool = True) -> RISFusion:
    """Fuser and LAVT from random weights around a text encoder.

    Args:
        architecture: their sizes.
        text_encoder: a `transformers.BertModel`; its `config.hidden_size` is the width of the text.
        segment: False leaves LAVT out.
    """
    config: Any = text_encoder.config
    text_dim = config.hidden_size
    if not segment:
        return RISFusion(text_encoder, _build_fuser(architecture, text_dim), None)
    # The order in which the networks are built decides which random weights a seed gives each of them.
    backbone = LanguageSwin(architecture.size, architecture.window, text_dim, architecture.pwam_heads,
                            architecture.fusion_drop)
    fuser = _build_fuser(architecture, text_dim)
    return RISFusion(text_encoder, fuser, LAVT(backbone, architecture.size.embed_dim))


def _build_fuser(architecture: Architecture, text_dim: int) -> UNetFuser | FusionRule:
    if architecture.prefusion_model == "unet_fuser":
        return UNetFuser(architecture.prefusion_base_ch, text_dim)
    return FusionRule(architecture.prefusion_model)


def check_kind(content: dict, source: str) -> None:
    """Check that a file holds the networks of RIS-FUSION, whatever their sizes; arguments as `build_from_checkpoint`.

    Raises:
        InputError: it does not.
    """
    absent = [key for key in ("model", "prefusion_model") if not isinstance(content.get(key), dict)]
    if absent:
        raise InputError(f"{source} is no RIS-FUSION checkpoint: it has no {absent[0]!r}, "
                         f"but {', '.join(map(printable, list(content)[:5])) or 'nothing'}")


def build_from_checkpoint(content: dict, source: str, ck_bert: str, pwam_heads: tuple[int, ...] = (1, 1, 1, 1),
                          bert_config: dict | None = None) -> RISFusion:
    """The model that a checkpoint holds, in evaluation mode.

    Swin size, window, fuser and text width are read off the tensors, a fusion method without parameters off `args`.

    Args:
        content: as `utils.checkpoint.read` gives it.
        source: the checkpoint's path, for the messages.
        ck_bert: folder with BERT's configuration; also its weights if the checkpoint has none.
        pwam_heads: PWAM's heads by stage, which no tensor shows.
        bert_config: plain values as `bert.plain_config` gives them, used instead of `ck_bert`; for a checkpoint that
            has BERT's weights.
    Raises:
        InputError: not a checkpoint of this kind, or one that does not fit the BERT in `ck_bert`.
        UsageError: there is no folder `ck_bert`, or the heads do not divide the widths.
    """
    check_kind(content, source)
    try:
        architecture = Architecture.from_checkpoint(content)
        reads_text = (content["prefusion_model"]["net.txt.proj.weight"] if architecture.prefusion_model == "unet_fuser"
                      else content["model"]["backbone.layers.0.fusion.image_lang_att.f_key.0.weight"])
        text_dim = reads_text.shape[1]
    except KeyError as error:
        raise InputError(f"{source} is no complete RIS-FUSION checkpoint: tensor {error} is absent") from error
    except IndexError as error:
        raise InputError(f"{source} is no RIS-FUSION checkpoint: a tensor that shows the sizes of the networks has too "
                         "few dimensions") from error
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    try:
        architecture = replace(architecture, pwam_heads=pwam_heads)
    except ValueError as error:
        raise UsageError(f"{source}: {error}", "mha") from error
    with_bert = isinstance(content.get("bert_model"), dict)
    if bert_config is not None:
        ck_bert = f"the BERT configuration in {source}"
    weight_bytes = size_of(content["bert_model"]) if with_bert else None
    model = assemble(architecture, build_text_encoder(ck_bert, not with_bert, config=bert_config, source=ck_bert,
                                                      weight_bytes=weight_bytes))
    if model.text_encoder.config.hidden_size != text_dim:
        raise InputError(f"{source} was trained with a text encoder of width {text_dim}, the one in {ck_bert} is of "
                         f"width {model.text_encoder.config.hidden_size}")
    assert model.segmenter is not None
    load_strictly(model.segmenter, content["model"], f"'model' in {source}")
    load_strictly(model.fuser, content["prefusion_model"], f"'prefusion_model' in {source}")
    if with_bert:
        load_strictly(model.text_encoder, content["bert_model"],
                      f"'bert_model' in {source}, read as {ck_bert} describes it,")
    else:
        logger.warning("WARNING: %s has no 'bert_model'. The text encoder comes from %s, as it was before any training "
                       "with this model; expect worse results if BERT was trained along.", source, ck_bert)
    fuser = (f"fuser width {architecture.prefusion_base_ch}" if architecture.prefusion_model == "unet_fuser" else
             f"fusion method {architecture.prefusion_model}")
    logger.info("%s: Swin %s, window %d, %s, text width %d", source, architecture.swin_type, architecture.window, fuser,
                text_dim)
    return model.eval()


def build_criterion(flags: Any, average: Average | None = None) -> JointCriterion:
    """The joint loss that the training flags describe.

    Args:
        flags: anything with the attributes that `LossWeights.from_flags` reads.
        average: gives the mean of a tensor over the processes that train together, if there are several.
    Raises:
        ValueError: see `LossWeights`.
    """
    return JointCriterion(LossWeights.from_flags(flags), average)
