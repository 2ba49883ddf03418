"""The text side: BERT and its tokenizer. The one package that touches transformers."""
from .encoder import build_text_encoder, check_vocabulary
from .tokenizer import MAX_TOKENS, Tokenizer

__all__ = ["MAX_TOKENS", "Tokenizer", "build_text_encoder", "check_vocabulary"]
