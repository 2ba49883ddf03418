"""A small BERT with random weights and its own vocabulary, so that demo and tests need no download."""
import os
import shutil
import tempfile

import torch

from utils.files import replacing

from .tokenizer import SPECIAL_TOKENS

POSITIONS = 64


def write_tiny_bert(folder: str, sentences: list[str], seed: int = 0, *, hidden: int = 128, layers: int = 2,
                    heads: int = 2, dropout: float = 0.1) -> None:
    """Write a folder with the files of `bert-base-uncased`: config.json, model.safetensors, vocab.txt, tokenizer files.

    The same arguments give the same bytes. Files of these names are replaced, each once it is complete.

    Args:
        folder: made if absent.
        sentences: text of which every lower-cased word becomes a token.
        seed: of the random weights.
        hidden, layers, heads: size of the network; `heads` divides `hidden`.
        dropout: of the hidden states and the attention weights, in training.
    """
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    os.makedirs(folder, exist_ok=True)
    vocabulary = make_vocabulary(sentences)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=POSITIONS,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)},
                      model_max_length=POSITIONS).save_pretrained(temporary)
        with open(os.path.join(temporary, "vocab.txt"), "w", encoding="utf-8") as file:
            file.writelines(f"{token}\n" for token in vocabulary)
        for name in sorted(os.listdir(temporary)):
            with replacing(os.path.join(folder, name)) as path:
                shutil.copyfile(os.path.join(temporary, name), path)


def make_vocabulary(sentences: list[str]) -> list[str]:
    """WordPiece tokens: special tokens, all characters alone and as `##` continuations, and all words of `sentences`.

    WordPieceTrainer is not used, because the pieces it chooses and their order differ between runs.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = Tokenizer(models.WordLevel())
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(sentences, trainers.WordLevelTrainer(min_frequency=1, show_progress=False))
    found = set(words.get_vocab())
    characters = set("".join(found)) | set("abcdefghijklmnopqrstuvwxyz0123456789")
    pieces = characters | {f"##{character}" for character in characters}
    return [*SPECIAL_TOKENS, *sorted(pieces), *sorted(found - pieces)]  # [PAD] gets id 0, as in bert-base-uncased
