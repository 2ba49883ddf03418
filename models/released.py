"""From a checkpoint in the released format to a model, with nothing but the file and BERT's configuration."""
import logging
from types import SimpleNamespace

from utils.checkpoint import load_strictly
from utils.errors import InputError

from .architecture import read_architecture
from .ris_fusion import RISFusion

log = logging.getLogger(__name__)


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
    from . import build_model

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
