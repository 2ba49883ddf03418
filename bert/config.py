"""BERT's configuration as plain values, checked before a network is built from it."""
import json
import os
from typing import Any

import torch

from utils.errors import InputError, UsageError
from utils.text import counted, first_line, printable, printable_value

from .tokenizer import MAX_TOKENS

MODEL_TYPE = "bert"
LARGEST = 10 ** 9  # parameters; bert-large has 0.34 · 10⁹

# What decides the network: (name in config.json, type, least, most). Other entries of a config.json are not read, so
# that none of them chooses code or changes what a forward pass returns.
NUMBERS = (
    ("vocab_size", int, 1, 10 ** 7),
    ("hidden_size", int, 1, 2 ** 14),
    ("num_hidden_layers", int, 1, 256),
    ("num_attention_heads", int, 1, 2 ** 10),
    ("intermediate_size", int, 1, 2 ** 16),
    ("max_position_embeddings", int, MAX_TOKENS, 2 ** 20),
    ("type_vocab_size", int, 1, 2 ** 10),
    ("hidden_dropout_prob", float, 0, 1),
    ("attention_probs_dropout_prob", float, 0, 1),
    ("initializer_range", float, 0, 10),
    ("layer_norm_eps", float, 0, 1),
)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu6",
               "silu", "swish", "mish", "tanh", "sigmoid", "linear")
NAMES = (*(name for name, *_ in NUMBERS), "hidden_act", "pad_token_id")


def plain_config(encoder: torch.nn.Module) -> dict[str, Any]:
    """The configuration of a text encoder as plain values, from which `build_text_encoder(config=…)` builds the same.

    Args:
        encoder: a `transformers.BertModel`.
    """
    return {name: getattr(encoder.config, name) for name in NAMES}


def read_config(folder: str) -> dict[str, Any]:
    """The content of `config.json` in a folder, unchecked.

    Raises:
        UsageError: there is no such folder.
        InputError: it has no readable `config.json`.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder!r}; "
                         "bert/pretrained_weights/download_weights.txt says how to get it")
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise InputError(f"{folder}: config.json is not in this folder")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)})") from error


def make_config(values: Any, source: str, weight_bytes: int | None = None):
    """A `BertConfig` from plain values; names that are absent have the values of bert-base-uncased.

    The attention is PyTorch's `scaled_dot_product_attention`, whatever the values say.

    Args:
        values: a dict by the names of a `config.json`.
        source: where it comes from, for the messages.
        weight_bytes: size of the weights that the network is to get, if it is known. A network with more parameters is
            refused here, since building it could take minutes and gigabytes before the shapes are compared.
    Raises:
        InputError: it is no dict, or a value is of the wrong type or out of bounds, or the network would be too large.
    """
    from transformers import BertConfig

    if not isinstance(values, dict):
        raise InputError(f"{source} is of type {type(values).__name__}, not names and values")
    if values.get("model_type") not in (None, MODEL_TYPE):
        raise InputError(f"{source} describes a model of type {printable(values['model_type'])!r}, not BERT")
    if values.get("position_embedding_type") not in (None, "absolute"):
        raise InputError(f"{source}: position_embedding_type is {printable(values['position_embedding_type'])!r}; only "
                         "BERT with absolute positions is supported")
    chosen = {name: values[name] for name in NAMES if name in values}
    for name, kind, least, most in NUMBERS:
        if name in chosen and not _is_number(chosen[name], kind, least, most):
            raise InputError(f"{source}: {name} must be a{' whole' if kind is int else ''} number from {least} to "
                             f"{most}, not {printable_value(chosen[name])}")
        if name in chosen:
            chosen[name] = kind(chosen[name])  # transformers takes no whole number for a float
    activation = chosen.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(f"{source}: hidden_act is {printable_value(activation)}; known are {', '.join(ACTIVATIONS)}")
    config = BertConfig(attn_implementation="sdpa",
                        **{name: value for name, value in chosen.items() if name != "pad_token_id"})
    padding = chosen.get("pad_token_id", 0)
    if padding is not None and not _is_number(padding, int, 0, config.vocab_size - 1):
        raise InputError(f"{source}: pad_token_id must be a number below vocab_size, {config.vocab_size}, not "
                         f"{printable_value(padding)}")
    config.pad_token_id = padding
    if config.hidden_size % config.num_attention_heads:
        raise InputError(f"{source}: the {config.num_attention_heads} attention heads do not divide the hidden size, "
                         f"{config.hidden_size}")
    if (parameters := _count_parameters(config)) > LARGEST:
        raise InputError(f"{source} describes a BERT of {parameters / 1e9:.1f} billion parameters; at most "
                         f"{LARGEST / 1e9:.0f} billion are supported")
    if weight_bytes is not None and parameters > weight_bytes:
        raise InputError(f"{source} describes a BERT of {parameters / 1e6:.2f} million parameters; its weights, "
                         f"{counted(weight_bytes, 'byte')}, are too few for that")
    return config


def _is_number(value: Any, kind: type, least: float, most: float) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most


def _count_parameters(config) -> int:
    """Roughly: without biases and norms."""
    embeddings = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = 4 * config.hidden_size + 2 * config.intermediate_size
    return config.hidden_size * (embeddings + config.num_hidden_layers * layer)
