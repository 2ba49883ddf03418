"""The text side: BERT and its tokenizer. The one package that touches transformers."""
from .config import plain_config
from .encoder import build_text_encoder, check_vocabulary
from .tokenizer import MAX_TOKENS, Tokenizer

__all__ = ["MAX_TOKENS", "Tokenizer", "build_text_encoder", "check_vocabulary", "plain_config"]
