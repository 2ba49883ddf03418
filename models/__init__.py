"""The networks and the losses of RIS-FUSION."""
import re

from bert import build_text_encoder
from utils.checkpoint import load_swin_weights

from .architecture import SWIN_SIZES, window_size
from .fuser import UNetFuser
from .lavt import LAVT
from .losses import SEG_LOSSES, JointCriterion
from .released import build_from_checkpoint
from .ris_fusion import Output, RISFusion
from .swin import LanguageSwin

__all__ = ["SEG_LOSSES", "SWIN_SIZES", "Output", "build_criterion", "build_from_checkpoint", "build_model", "parse_mha"]

FUSION_WEIGHTS = ("ssim_vis", "ssim_ir", "mse_vis", "mse_ir", "sobel_vis", "sobel_ir", "grad")


def parse_mha(text: str) -> tuple[int, int, int, int]:
    """PWAM's heads per stage from the form `4-4-4-4`; an empty string means one head each.

    Raises:
        ValueError: not four whole numbers above 0.
    """
    if not text:
        return (1, 1, 1, 1)
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*){3}", text):
        raise ValueError(f"{text!r} is not four numbers of heads, as in 4-4-4-4")
    return tuple(int(number) for number in text.split("-"))


def build_model(args, pretrained: bool = True) -> RISFusion:
    """The joint model that `args` describes.

    Args:
        args: has `swin_type` (a key of SWIN_SIZES), `window12` (bool), `mha` (str, see `parse_mha`), `fusion_drop`
            (rate), `prefusion_base_ch` (int), `ck_bert` (folder with BERT's configuration and weights; empty: BERT-base
            from random weights), `pretrained_swin_weights` (file; empty: random weights).
        pretrained: False reads no weights, only BERT's configuration; for filling in a checkpoint afterwards.
    Returns:
        A model with `text_encoder`, `fuser` and `segmenter`, whose state dicts have the keys of the released
        checkpoint's `bert_model`, `prefusion_model` and `model`.
    Raises:
        UsageError: a file or folder is not there.
        InputError: its content cannot be used.
        ValueError: `mha` is malformed or does not divide a stage's width.
    """
    size = SWIN_SIZES[args.swin_type]
    heads = parse_mha(args.mha)
    for stage, count in enumerate(heads):
        if size.embed_dim * 2 ** stage % count:
            raise ValueError(f"mha {args.mha}: {count} heads do not divide the {size.embed_dim * 2 ** stage} channels "
                             f"of stage {stage + 1} of Swin {args.swin_type}")
    text_encoder = build_text_encoder(args.ck_bert, pretrained)
    text_dim = text_encoder.config.hidden_size
    backbone = LanguageSwin(size, window_size(args), text_dim, heads, args.fusion_drop)
    if pretrained and args.pretrained_swin_weights:
        load_swin_weights(backbone, args.pretrained_swin_weights)
    return RISFusion(text_encoder, UNetFuser(args.prefusion_base_ch, text_dim), LAVT(backbone, size.embed_dim))


def build_criterion(args) -> JointCriterion:
    """The joint loss that `args` describes.

    Args:
        args: has `seg_loss` (a key of SEG_LOSSES), `lambda_prefusion` and the weights `w_ssim_vis`, `w_ssim_ir`,
            `w_mse_vis`, `w_mse_ir`, `w_sobel_vis`, `w_sobel_ir`, `w_grad`.
    """
    weights = {name: getattr(args, f"w_{name}") for name in FUSION_WEIGHTS}
    return JointCriterion(weights, args.lambda_prefusion, args.seg_loss)
