"""The way in: from arguments or from a checkpoint to a model, from arguments to its loss."""
import logging
import re
from types import SimpleNamespace

from bert import build_text_encoder
from utils.checkpoint import load_strictly, load_swin_weights
from utils.errors import InputError

from .architecture import SWIN_SIZES, read_architecture, window_size
from .fuser import UNetFuser
from .lavt import LAVT
from .losses import JointCriterion
from .ris_fusion import RISFusion
from .swin import LanguageSwin

log = logging.getLogger(__name__)

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


def build_model(args, pretrained: bool = True, segment: bool = True) -> RISFusion:
    """The joint model that `args` describes.

    Args:
        args: has `swin_type` (a key of SWIN_SIZES), `window12` (bool), `mha` (str, see `parse_mha`), `fusion_drop`
            (rate), `prefusion_base_ch` (int), `ck_bert` (folder with BERT's configuration and weights; empty: BERT-base
            from random weights), `pretrained_swin_weights` (file; empty: random weights).
        pretrained: False reads no weights, only BERT's configuration; for filling in a checkpoint afterwards.
        segment: False builds text encoder and fuser alone.
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
            raise ValueError(f"{args.mha!r}: {count} heads do not divide the {size.embed_dim * 2 ** stage} channels "
                             f"of stage {stage + 1} of Swin {args.swin_type}")
    text_encoder = build_text_encoder(args.ck_bert, pretrained)
    text_dim = text_encoder.config.hidden_size
    if not segment:
        return RISFusion(text_encoder, UNetFuser(args.prefusion_base_ch, text_dim), None)
    backbone = LanguageSwin(size, window_size(args), text_dim, heads, args.fusion_drop)
    if pretrained and args.pretrained_swin_weights:
        load_swin_weights(backbone, args.pretrained_swin_weights)
    return RISFusion(text_encoder, UNetFuser(args.prefusion_base_ch, text_dim), LAVT(backbone, size.embed_dim))


def build_from_checkpoint(content: dict, source: str, ck_bert: str, mha: str) -> RISFusion:
    """The model that a checkpoint holds, in evaluation mode.

    Swin size, window, fuser and text width are read off the tensors.

    Args:
        content: as `utils.checkpoint.read` gives it.
        source: the checkpoint's path, for the messages.
        ck_bert: folder with BERT's configuration; also its weights if the checkpoint has none.
        mha: PWAM's heads by stage, which no tensor shows; see `parse_mha`.
    Raises:
        InputError: not a checkpoint of this kind, or one that does not fit the BERT in `ck_bert`.
        UsageError: there is no folder `ck_bert`.
        ValueError: `mha` is malformed or does not divide a stage's width.
    """
    absent = [key for key in ("model", "prefusion_model") if not isinstance(content.get(key), dict)]
    if absent:
        raise InputError(f"{source} is no RIS-FUSION checkpoint: it has no {absent[0]!r}, "
                         f"but {', '.join(map(str, list(content)[:5])) or 'nothing'}")
    try:
        sizes = read_architecture(content["model"], content["prefusion_model"])
    except KeyError as error:
        raise InputError(f"{source} is no complete RIS-FUSION checkpoint: tensor {error} is absent") from error
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    text_dim = sizes.pop("text_dim")
    with_bert = isinstance(content.get("bert_model"), dict)
    args = SimpleNamespace(**sizes, mha=mha, fusion_drop=0.0, ck_bert=ck_bert, pretrained_swin_weights="")
    model = build_model(args, pretrained=not with_bert)
    if model.text_encoder.config.hidden_size != text_dim:
        raise InputError(f"{source} was trained with a text encoder of width {text_dim}, "
                         f"--ck_bert {ck_bert} is of width {model.text_encoder.config.hidden_size}")
    load_strictly(model.segmenter, content["model"], f"'model' in {source}")
    load_strictly(model.fuser, content["prefusion_model"], f"'prefusion_model' in {source}")
    if with_bert:
        load_strictly(model.text_encoder, content["bert_model"], f"'bert_model' in {source}, read as --ck_bert "
                                                                 f"{ck_bert} describes it,")
    else:
        log.warning("WARNING: %s has no 'bert_model'. The text encoder comes from --ck_bert %s, as it was before any "
                    "training with this model; expect worse results if BERT was trained along.", source, ck_bert)
    log.info("%s: Swin %s, window %d, fuser width %d, text width %d", source, sizes["swin_type"],
             12 if sizes["window12"] else 7, sizes["prefusion_base_ch"], text_dim)
    return model.eval()


def build_criterion(args, average=None) -> JointCriterion:
    """The joint loss that `args` describes.

    Args:
        args: has `seg_loss` (a key of SEG_LOSSES), `lambda_prefusion` and the weights `w_ssim_vis`, `w_ssim_ir`,
            `w_mse_vis`, `w_mse_ir`, `w_sobel_vis`, `w_sobel_ir`, `w_grad`.
        average: gives the mean of a tensor over the processes that train together, if there are several.
    """
    weights = {name: getattr(args, f"w_{name}") for name in FUSION_WEIGHTS}
    return JointCriterion(weights, args.lambda_prefusion, args.seg_loss, average)
