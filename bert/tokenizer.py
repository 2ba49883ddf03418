"""From sentences to the token ids that RIS-FUSION was trained on."""
import os

import torch

from utils.errors import InputError, UsageError

MAX_TOKENS = 20


class Tokenizer:
    """WordPiece of the uncased BERT, cut and padded to MAX_TOKENS.

    Args:
        folder: holds `vocab.txt` or `tokenizer.json`, as `bert-base-uncased` is distributed.
    Raises:
        UsageError: the folder does not exist.
        InputError: it holds no usable vocabulary.
    """

    def __init__(self, folder: str):
        from transformers import BertTokenizer

        if not os.path.isdir(folder):
            raise UsageError(f"there is no folder {folder!r}; "
                             "bert/pretrained_weights/download_weights.txt says how to get it")
        if not any(os.path.isfile(os.path.join(folder, name)) for name in ("vocab.txt", "tokenizer.json")):
            raise InputError(f"{folder}: neither vocab.txt nor tokenizer.json is in this folder")
        self.folder = folder
        try:
            # Said outright: what a folder without tokenizer_config.json means differs between transformers' releases.
            self._wordpiece = BertTokenizer.from_pretrained(folder, local_files_only=True, do_lower_case=True)
        except Exception as error:  # transformers and tokenizers raise many kinds for a damaged file
            raise InputError(f"{folder}: the vocabulary cannot be read ({error})".replace("\n", " ")) from error

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self._wordpiece)

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
