"""BERT, the text encoder of RIS-FUSION (Devlin et al., NAACL 2019), as transformers implements it."""
import os

import torch

from utils.errors import InputError, UsageError


def read_text_config(folder: str):
    """The `BertConfig` in `folder`; an empty string gives that of bert-base-uncased.

    Raises:
        UsageError: there is no such folder.
        InputError: it has no readable `config.json`.
    """
    from transformers import BertConfig

    if not folder:
        return BertConfig()
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder!r}; "
                         "bert/pretrained_weights/download_weights.txt says how to get it")
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise InputError(f"{folder}: config.json is not in this folder")
    try:
        return BertConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/config.json cannot be read ({error})".replace("\n", " ")) from error


def check_vocabulary(tokenizer, encoder: torch.nn.Module) -> None:
    """Check that every id that the tokenizer can give has an embedding in the text encoder.

    Raises:
        InputError: it has not, so the two belong to different BERTs.
    """
    if len(tokenizer) > encoder.config.vocab_size:
        raise InputError(f"the vocabulary in {tokenizer.folder} has {len(tokenizer)} words, but the text encoder knows "
                         f"{encoder.config.vocab_size}; name the folder with the vocabulary of its BERT")


def build_text_encoder(folder: str, pretrained: bool = True) -> torch.nn.Module:
    """A `transformers.BertModel` without pooler, float32.

    `encoder(input_ids, attention_mask=mask).last_hidden_state` is (B, T, hidden size).

    Args:
        folder: holds `config.json` and the weights; an empty string means BERT-base from random weights.
        pretrained: False takes only the configuration from the folder.
    Raises:
        UsageError, InputError: as `read_text_config`; also when the weights are absent, damaged or incomplete.
    """
    from transformers import BertModel
    from transformers.utils import logging

    config = read_text_config(folder)
    if not folder or not pretrained:
        return BertModel(config, add_pooling_layer=False)
    logging.set_verbosity_error()  # it would list the unused heads of the language model one by one
    logging.disable_progress_bar()
    try:
        encoder, report = BertModel.from_pretrained(
            folder, config=config, add_pooling_layer=False, local_files_only=True,
            dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch raise many kinds for a damaged file
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder}: the BERT weights cannot be loaded ({reason})") from error
    if report["missing_keys"]:
        raise InputError(f"{folder}: the BERT weights lack {len(report['missing_keys'])} tensors, "
                         f"{sorted(report['missing_keys'])[0]} among them")
    return encoder
