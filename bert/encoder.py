"""BERT, the text encoder of RIS-FUSION (Devlin et al., NAACL 2019), as transformers implements it."""
import glob
import os

import torch

from utils.errors import InputError
from utils.text import first_line

from .config import make_config, read_config
from .tokenizer import Tokenizer


def check_vocabulary(tokenizer: Tokenizer, encoder: torch.nn.Module) -> None:
    """Check that every id that the tokenizer can give has an embedding in the text encoder.

    Raises:
        InputError: it has not, so the two belong to different BERTs.
    """
    if len(tokenizer) > encoder.config.vocab_size:
        raise InputError(f"the vocabulary in {tokenizer.source} has {len(tokenizer)} words, but the text encoder has "
                         f"{encoder.config.vocab_size} embeddings; name the folder with the vocabulary of its BERT")


def build_text_encoder(folder: str = "", pretrained: bool = True, *, config: dict | None = None,
                       source: str = "the configuration", weight_bytes: int | None = None) -> torch.nn.Module:
    """A `transformers.BertModel` without pooler, float32.

    `encoder(input_ids, attention_mask=mask).last_hidden_state` is (B, T, hidden size).

    Args:
        folder: holds `config.json` and the weights; an empty string means BERT-base from random weights.
        pretrained: False takes only the configuration from the folder.
        config: plain values as `plain_config` gives them, instead of a folder; the weights are random then.
        source: where `config` comes from, for the messages.
        weight_bytes: size of the weights that the caller will fill in, where they are not those of the folder; see
            `config.make_config`.
    Raises:
        UsageError: there is no such folder.
        InputError: the configuration cannot be used; or the weights are absent, damaged, incomplete or not finite.
    """
    from transformers import BertModel
    from transformers.utils import logging

    if config is not None:
        return BertModel(make_config(config, source, weight_bytes), add_pooling_layer=False)
    if not folder:
        return BertModel(make_config({}, "bert-base-uncased"), add_pooling_layer=False)
    size = _size_of_weights(folder) if pretrained else weight_bytes
    checked = make_config(read_config(folder), os.path.join(folder, "config.json"), size)
    if not pretrained:
        return BertModel(checked, add_pooling_layer=False)
    logging.set_verbosity_error()  # it would list the unused heads of the language model one by one
    logging.disable_progress_bar()
    try:
        encoder, report = BertModel.from_pretrained(
            folder, config=checked, add_pooling_layer=False, local_files_only=True, trust_remote_code=False,
            attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch raise many kinds for a damaged file
        raise InputError(f"{folder}: the BERT weights cannot be loaded ({first_line(error)})") from error
    if report["missing_keys"]:
        raise InputError(f"{folder}: the BERT weights lack {len(report['missing_keys'])} tensors, "
                         f"{sorted(report['missing_keys'])[0]} among them")
    for name, tensor in encoder.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{folder}: the BERT weights hold NaN or infinity, first in {name}; download or save them "
                             "again")
    return encoder


def _size_of_weights(folder: str) -> int | None:
    """Bytes of all files with weights in a folder, in whatever type they are stored; None if there is none."""
    sizes = [os.path.getsize(path) for path in glob.glob(os.path.join(glob.escape(folder), "*"))
             if path.endswith((".safetensors", ".bin")) and os.path.isfile(path)]
    return sum(sizes) if sizes else None
