"""From sentences to the token ids that RIS-FUSION was trained on."""
import json
import os
from collections.abc import Iterable

import torch

from utils.errors import InputError, UsageError
from utils.text import first_line, printable, printable_value

MAX_TOKENS = 20
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """WordPiece of the uncased BERT, cut and padded to MAX_TOKENS.

    Args:
        folder: holds `tokenizer.json` or `vocab.txt`, as `bert-base-uncased` is distributed; the first is preferred.
            Only the vocabulary in it is used: the rest is always as in bert-base-uncased. A folder that asks for
            sentences with capitals, as a cased BERT's does, is refused.
    Attributes:
        source: where the vocabulary comes from, for messages.
    Raises:
        UsageError: the folder does not exist.
        InputError: it holds no usable vocabulary, or that of a cased BERT.
    """

    def __init__(self, folder: str):
        if not os.path.isdir(folder):
            raise UsageError(f"there is no folder {folder!r}; "
                             "bert/pretrained_weights/download_weights.txt says how to get it")
        for name, read in (("tokenizer.json", _words_of_json), ("vocab.txt", _words_of_text)):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                try:
                    words = read(path)
                except InputError:
                    raise
                except (OSError, ValueError, RecursionError) as error:
                    raise InputError(f"{path}: the vocabulary cannot be read ({first_line(error)})") from error
                _refuse_cased(folder)
                self._set_vocabulary(words, path, folder)
                return
        raise InputError(f"{folder}: neither vocab.txt nor tokenizer.json is in this folder")

    @classmethod
    def from_vocabulary(cls, words: Iterable[str], source: str = "the vocabulary") -> "Tokenizer":
        """A tokenizer from the words themselves.

        Args:
            words: in the order of their ids.
            source: where they come from, for messages.
        Raises:
            InputError: they are not the vocabulary of a BERT.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_vocabulary(words, source, source)
        return tokenizer

    def vocabulary(self) -> list[str]:
        """The words in the order of their ids, from which `from_vocabulary` makes the same tokenizer."""
        return list(self._words)

    def __len__(self) -> int:
        """Size of the vocabulary; every id is below it."""
        return len(self._words)

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenize; a long sentence is cut to its first MAX_TOKENS ids and so loses its [SEP].

        Returns:
            input_ids (N, MAX_TOKENS) int64, padded with 0; attention_mask likewise, 1 on real tokens.
        """
        input_ids = torch.zeros(len(sentences), MAX_TOKENS, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        if not sentences:
            return input_ids, attention_mask
        # No truncation by the tokenizer: it would keep [SEP] at the end.
        for row, whole in enumerate(self._wordpiece(list(sentences), verbose=False)["input_ids"]):
            ids = whole[:MAX_TOKENS]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask

    def _set_vocabulary(self, words: Iterable[str], path: str, source: str) -> None:
        from transformers import BertTokenizer

        words = _checked(words, path)
        self.source, self._words = source, words
        # With its own settings and not those of a folder's tokenizer_config.json, which can name other code.
        self._wordpiece = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)


def _refuse_cased(folder: str) -> None:
    """Check that no file in a folder says that sentences keep their capitals, which would be lower-cased here."""
    for name, part, key in (("tokenizer_config.json", None, "do_lower_case"),
                            ("tokenizer.json", "normalizer", "lowercase")):
        path = os.path.join(folder, name)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)})") from error
        values = content.get(part) if part and isinstance(content, dict) else content
        if isinstance(values, dict) and values.get(key) is False:
            raise InputError(f"{path}: {key} is false, as of a cased BERT; sentences are lower-cased here, so take an "
                             "uncased BERT such as bert-base-uncased")


def _checked(words: Iterable[str], path: str) -> list[str]:
    """The words as a list that BERT's tokenizer can work with."""
    if not isinstance(words, list | tuple):
        raise InputError(f"{path}: the vocabulary is of type {type(words).__name__}, not a list of words")
    if not words:
        raise InputError(f"{path}: the vocabulary is empty")
    ids = {}
    for i, word in enumerate(words):
        if not isinstance(word, str) or not _is_utf8(word):
            raise InputError(f"{path}: the word with id {i} is no valid text, but {printable_value(word)}")
        if word in ids:
            raise InputError(f"{path}: the word {printable(word)!r} occurs twice, with ids {ids[word]} and {i}")
        ids[word] = i
    absent = [word for word in SPECIAL_TOKENS if word not in ids]
    if absent:
        raise InputError(f"{path}: the vocabulary lacks {', '.join(absent)}, which every BERT has")
    return list(words)


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can spell
        return False
    return True


def _words_of_text(path: str) -> list[str]:
    """A word a line; the line is the id."""
    with open(path, encoding="utf-8") as file:
        words = file.read().split("\n")
    while words and not words[-1]:  # line ends at the end of the file
        words.pop()
    return words


def _words_of_json(path: str) -> list[str]:
    """The vocabulary of a WordPiece model as the library tokenizers stores it."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
        raise InputError(f"{path} holds no WordPiece model, as BERT's tokenizer is")
    ids = model.get("vocab")
    if not isinstance(ids, dict):
        raise InputError(f"{path} has no vocabulary in its model")
    added = content.get("added_tokens") or []
    if isinstance(added, list):
        ids = ids | {token["content"]: token["id"] for token in added
                     if isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token}
    words = sorted(ids, key=lambda word: ids[word] if isinstance(ids[word], int) else -1)
    for i, word in enumerate(words):
        if ids[word] != i or isinstance(ids[word], bool):
            raise InputError(f"{path}: the id of the word {printable(word)!r} is {printable_value(ids[word])}; ids "
                             f"must be 0 to {len(ids) - 1}, each once")
    return words
