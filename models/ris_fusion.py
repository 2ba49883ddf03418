"""The joint model: text encoder, fuser and segmenter in one forward pass."""
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fuser import EncodedPair, UNetFuser
from .fusion_rules import FusionRule
from .lavt import LAVT

INPUTS = ("vis", "ir", "input_ids", "attention_mask")  # of the model, in this order; their names in a batch
GIVEN = "given"  # likewise, a further input that only some batches have
Words = tuple[Tensor, Tensor]  # (B, T, text width) last hidden states of the text encoder, (B, T) 1 on real tokens


class Sentences(NamedTuple):
    """A batch of sentences as the text encoder has read them."""

    words: Words
    for_fuser: Words  # the same, or those of the only sentence that the fuser reads


Encoded = EncodedPair | Tensor  # the latter: (B, 3, H, W), the fused image itself, if no sentence has a part in it


def inputs_of(batch: dict) -> list[Tensor]:
    """The model's inputs in a batch, in order: those named in INPUTS, and GIVEN where there is one."""
    return [batch[name] for name in (*INPUTS, *[GIVEN] * (GIVEN in batch))]


class Output(NamedTuple):
    """The model's results for a batch."""

    fused: Tensor          # (B, 3, H, W), standardised with the visible statistics
    logits: Tensor | None  # (B, 2, H, W), class 1 is the referred object; None without segmenter


class RISFusion(nn.Module):
    """RIS-FUSION (arXiv 2509.12710): a sentence guides the fusion of two images and is grounded in the result.

    Gradients of the segmentation loss reach the fuser: its output enters the segmenter undetached. This and the fuser's
    sentence can be changed, for ablations; both leave the tensors of the networks as they are.

    Attributes:
        detach_fused: whether to keep these gradients from the fuser; False.
        fuser_ids: (1, T) int64, ids of the only sentence that the fuser reads, see `fix_fuser_sentence`; None: the same
            as the segmenter.

    Args:
        text_encoder: a `transformers.BertModel` without pooler.
        fuser: fuses the two images; a `FusionRule` has no parameters.
        segmenter: None for fusion alone.
    """

    fuser_ids: Tensor | None

    def __init__(self, text_encoder: nn.Module, fuser: UNetFuser | FusionRule, segmenter: LAVT | None):
        super().__init__()
        self.text_encoder: Any = text_encoder  # its type is known to bert/ alone
        self.fuser = fuser
        self.segmenter = segmenter
        self.frozen: list[nn.Module] = []
        self.detach_fused = False
        self.register_buffer("fuser_ids", None, persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """`text_encoder`, `fuser` and, if there is one, `segmenter`, by name."""
        return dict(self.named_children())

    def freeze(self, part: nn.Module) -> None:
        """Do not train `part`, and keep it in evaluation mode: no dropout, no stochastic depth."""
        part.requires_grad_(False)
        self.frozen.append(part)
        part.eval()

    def fix_fuser_sentence(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Let the fuser read one sentence for all pairs, whatever the segmenter reads.

        Args:
            input_ids, attention_mask: (1, T), as of `forward`.
        """
        self.fuser_ids = input_ids[:, :int(attention_mask.sum())]

    def train(self, mode: bool = True) -> "RISFusion":
        """Set the training mode, except of frozen parts, which stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, vis: Tensor, ir: Tensor, input_ids: Tensor, attention_mask: Tensor, given: Tensor | None = None
                ) -> Output:
        """Fuse and segment.

        Args:
            vis, ir: (B, 3, H, W) float, standardised; H or W above 32.
            input_ids: (B, T) int64 token ids, 0 on padding.
            attention_mask: (B, T) int64, 1 on real tokens.
            given: (B, 3, H, W) fused images of any method, standardised; the segmenter sees them instead of what the
                fuser would make.
        Raises:
            ValueError: H and W are both 32 or less.
        """
        return self.answer(self.encode_pair(vis, ir, given), self.encode_text(input_ids, attention_mask))

    def encode_pair(self, vis: Tensor, ir: Tensor, given: Tensor | None = None) -> Encoded:
        """The part of `forward` that does not depend on the sentence: the fuser's two encoders, or its rule."""
        return self.fuser.encode(vis, ir) if given is None else given

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Sentences:
        """The part of `forward` that does not depend on the images: the text encoder."""
        words = self._read(input_ids, attention_mask), attention_mask
        if self.fuser_ids is None:
            return Sentences(words, words)
        mask = torch.ones_like(self.fuser_ids)
        fixed, size = self._read(self.fuser_ids, mask), len(input_ids)
        return Sentences(words, (fixed.expand(size, -1, -1), mask.expand(size, -1)))

    def answer(self, pair: Encoded, sentences: Sentences) -> Output:
        """The rest of `forward`, for one sentence about each pair: the fuser's decoder and the segmenter.

        The segmenter depends on the sentence twice, because its input, the fused image, does.
        """
        fused = self.fuse(pair, sentences)
        if self.segmenter is None:
            return Output(fused, None)
        return Output(fused, self.segmenter(fused.detach() if self.detach_fused else fused, *sentences.words))

    def fuse(self, pair: Encoded, sentences: Sentences) -> Tensor:
        """The fused image alone, (B, 3, H, W) standardised; H and W are those of the pair, at least 8."""
        return pair if isinstance(pair, Tensor) else self.fuser.decode(pair, *sentences.for_fuser)

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) ids and mask to (B, T, text width)."""
        # A mask with a row for each query, because transformers inspects one with a single row for whether it masks
        # anything, which waits for the GPU.
        unmasked = attention_mask.bool()[:, None, None, :].expand(-1, -1, attention_mask.shape[1], -1)
        return self.text_encoder(input_ids, attention_mask=unmasked).last_hidden_state
