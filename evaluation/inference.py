"""A checkpoint opened for use: its tokenizer, and its model with the requested precision and mirroring."""
import argparse
import functools
import importlib.util
import logging
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bert import Tokenizer, check_vocabulary
from models import Output, build_from_checkpoint
from models.architecture import fusion_method, parse_heads
from models.build import check_kind
from models.ris_fusion import Encoded, RISFusion, Sentences
from models.tta import average, average_fused, exchange, left_right_ids
from utils import checkpoint
from utils.content import embedded_bert
from utils.device import compile_mode, warn_if_slow
from utils.errors import InputError, UsageError, naming
from utils.flags import image_size
from utils.foreign import WEIGHTS
from utils.sizes import LARGEST_SIDE, SMALLEST_SIDE
from utils.text import printable_value

from .bert_files import check_given, find_bert

# The folder may be deleted: the same results, slower.
fast = importlib.import_module("models.fast") if importlib.util.find_spec("models.fast") else None

logger = logging.getLogger(__name__)

FetchBert = Callable[[bool], str]


class Inference(nn.Module):
    """A model as an evaluation runs it; takes what `RISFusion` takes and gives float32.

    Args:
        model: a `RISFusion`.
        flip: average with the mirrored images, in which the words `left` and `right` are exchanged; see `models.tta`.
        left_right: token ids of these two words, from `left_right_ids`; None leaves the sentences as they are.
        amp_dtype: 16-bit type to compute in where autocast finds it safe; None: everything in float32.
        compile_mode: for `torch.compile`, see `utils.device.compile_mode`; None: not compiled.
    """

    def __init__(self, model: nn.Module, flip: bool = False, left_right: tuple[int, int] | None = None,
                 amp_dtype: torch.dtype | None = None, compile_mode: str | None = None):
        super().__init__()
        if compile_mode:
            model.compile(mode=compile_mode, dynamic=False)
        self.model = model
        self.flip = flip
        self.left_right = left_right
        self.amp_dtype = amp_dtype
        self.compiled_for: int | None = 0 if compile_mode else None  # batch size, 0 before the first batch

    def forward(self, vis: Tensor, ir: Tensor, input_ids: Tensor, attention_mask: Tensor, *given: Tensor) -> Output:
        """Fuse and segment; shapes as in `RISFusion`."""
        with self._autocast(vis.device):
            outputs = [self._run(vis, ir, input_ids, attention_mask, *given)]
            if self.flip:
                outputs.append(self._run(vis.flip(-1), ir.flip(-1), exchange(input_ids, self.left_right),
                                         attention_mask, *(tensor.flip(-1) for tensor in given)))
        return self._joined(outputs)

    def encode_pair(self, vis: Tensor, ir: Tensor) -> tuple[Encoded, ...]:
        """The part of `forward` that does not depend on the sentence: the pair, and with `flip` the mirrored pair."""
        with self._autocast(vis.device):
            pair = self.model.encode_pair(vis, ir)
            return (pair, self.model.encode_pair(vis.flip(-1), ir.flip(-1))) if self.flip else (pair,)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Sentences, ...]:
        """The part of `forward` that does not depend on the images; with `flip` also for the mirrored ones."""
        mirrored = (exchange(input_ids, self.left_right),) if self.flip else ()
        with self._autocast(input_ids.device):
            return tuple(self.model.encode_text(ids, attention_mask) for ids in (input_ids, *mirrored))

    def answer(self, pairs: tuple[Encoded, ...], sentences: tuple[Sentences, ...]) -> Output:
        """The rest of `forward`, for the results of `encode_pair` and `encode_text`."""
        with self._autocast(sentences[0].words[0].device):
            return self._joined([self.model.answer(pair, read) for pair, read in zip(pairs, sentences, strict=True)])

    def fuse(self, pairs: tuple[Encoded, ...], sentences: tuple[Sentences, ...]) -> Tensor:
        """The fused image alone, (B, 3, H, W) float32, likewise."""
        with self._autocast(sentences[0].words[0].device):
            fused = [self.model.fuse(pair, read) for pair, read in zip(pairs, sentences, strict=True)]
        return average_fused(*fused) if len(fused) == 2 else fused[0].float()

    def _autocast(self, device: torch.device):
        return torch.autocast(device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    @staticmethod
    def _joined(outputs: list[Output]) -> Output:
        output = average(*outputs) if len(outputs) == 2 else outputs[0]
        return Output(output.fused.float(), output.logits.float())

    def _run(self, *inputs: Tensor) -> Output:
        if self.compiled_for is None:
            return self.model(*inputs)
        size = len(inputs[0])
        self.compiled_for = max(self.compiled_for, size)
        if size < self.compiled_for:  # padded with its last sample, since compiling for another size takes minutes
            index = torch.arange(self.compiled_for, device=inputs[0].device).clamp(max=size - 1)
            inputs = tuple(tensor.index_select(0, index) for tensor in inputs)
        # Copies, since a CUDA graph writes its next results to the same memory.
        return Output(*(tensor[:size].clone() for tensor in self.model(*inputs)))


class LoadedCheckpoint(NamedTuple):
    """A checkpoint's model as its networks are defined, in evaluation mode on the CPU, and what else it says."""

    model: RISFusion
    tokenizer: Tokenizer
    img_size: int  # pixels
    mha: str
    fusion_method: str  # one of `utils.flags.FUSION_METHODS`
    about: dict[str, Any]  # the entries that are no weights: `args`, `epoch` and more


class OpenCheckpoint(NamedTuple):
    """A checkpoint ready for use, and the settings with which it was opened."""

    model: Inference
    tokenizer: Tokenizer
    img_size: int  # pixels
    mha: str
    fusion_method: str  # one of `utils.flags.FUSION_METHODS`


def load_checkpoint(path: str, *, bert_tokenizer: str | None = None, ck_bert: str | None = None,
                    img_size: int | None = None, mha: str | None = None, fetch_bert: FetchBert | None = None,
                    must_fuse: bool = False) -> LoadedCheckpoint:
    """Build the model of a checkpoint.

    Args:
        path: a file in the released format, or a folder of `utils.model_folder`.
        bert_tokenizer, ck_bert: folders with BERT's vocabulary, and with its configuration (its weights are read only
            if the checkpoint has none); one serves for both, see `bert_files.find_bert`.
        img_size: side of the square images that the networks see, pixels, above 32.
        mha: attention heads of PWAM by stage, as in `4-4-4-4`; empty: one each. Where one of these four is None it is
            what the checkpoint carries or names, else bert-base-uncased in its usual folder, 480, and one head each.
        fetch_bert: gives a folder of bert-base-uncased where that is in no usual folder; takes whether its weights are
            needed.
        must_fuse: refuse a checkpoint that was trained on given fused images, for a caller who has none to give it.
    Raises:
        UsageError: a file or folder does not exist, or an argument cannot be used; its `argument` says which.
        InputError: the checkpoint or BERT's files are damaged or do not fit together, or see `must_fuse`.
    """
    given = check_given({"bert_tokenizer": bert_tokenizer, "ck_bert": ck_bert})
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"must be a path, not a {type(path).__name__}", "path")
    path = str(path)
    content = checkpoint.read(path)
    check_kind(content, path)
    method = fusion_method(content)
    if must_fuse and method == "given":
        raise InputError(f"{path} was trained on fused images that came with the data (prefusion_model given), so it "
                         "cannot fuse a pair of images; take a checkpoint of another fusion method, or evaluate this "
                         "one with test.py")
    stored = checkpoint.stored_args(content)
    img_size = _image_size(img_size, stored.get("img_size"))
    mha, heads = _heads(mha, stored.get("mha"))
    bert = embedded_bert(content, path) if len(given) < 2 else None
    with_weights = bert is not None and content.get("bert_model") is not None
    fetch = functools.partial(fetch_bert, content.get("bert_model") is None) if fetch_bert else None
    folders = find_bert(given, stored, {"bert_tokenizer": bert is not None, "ck_bert": with_weights}, fetch)
    with naming("bert_tokenizer"):
        if folders.bert_tokenizer is None:
            tokenizer = Tokenizer.from_vocabulary(bert["vocabulary"], path)
        else:
            tokenizer = Tokenizer(folders.bert_tokenizer)
    model = build_from_checkpoint(content, path, folders.ck_bert, heads,
                                  bert["config"] if folders.ck_bert is None else None)
    about = {name: value for name, value in content.items() if name not in WEIGHTS}
    del content, bert  # as large as the model, and not needed while that is prepared
    with naming("bert_tokenizer"):
        check_vocabulary(tokenizer, model.text_encoder)
    if stored.get("fuser_text") == "none":
        logger.info("%s: the fuser reads an empty sentence, as in training (fuser_text none)", path)
        model.fix_fuser_sentence(*tokenizer([""]))
    return LoadedCheckpoint(model, tokenizer, img_size, mha, method, about)


def open_checkpoint(path: str, device: torch.device, *, bert_tokenizer: str | None = None, ck_bert: str | None = None,
                    img_size: int | None = None, mha: str | None = None, flip: bool = False, amp: bool = False,
                    compiled: bool = False, keep_memory: bool = False, fetch_bert: FetchBert | None = None,
                    must_fuse: bool = False) -> OpenCheckpoint:
    """Open a checkpoint for evaluation on a device.

    Args:
        path, bert_tokenizer, ck_bert, img_size, mha, fetch_bert, must_fuse: as of `load_checkpoint`.
        device: where to compute.
        flip: average with the mirrored images.
        amp: compute in bfloat16 where that is safe, instead of float32.
        compiled: compile with `torch.compile`.
        keep_memory: let this process keep the memory of freed tensors, which is faster; for a program that does only
            this.
    Raises:
        UsageError: a file or folder does not exist, or an argument cannot be used; its `argument` says which.
        InputError: the checkpoint or BERT's files are damaged or do not fit together, or see `must_fuse`.
    """
    if fast is not None and keep_memory:
        fast.return_freed_memory(device)  # until the model is there: gaps among its weights would serve no other tensor
    model, tokenizer, img_size, mha, method, _ = load_checkpoint(
        path, bert_tokenizer=bert_tokenizer, ck_bert=ck_bert, img_size=img_size, mha=mha, fetch_bert=fetch_bert,
        must_fuse=must_fuse)
    left_right = left_right_ids(tokenizer) if flip else None
    if flip and left_right is None:
        logger.warning("%s does not have both `left` and `right` as words: sentences keep them for the mirrored image, "
                       "which shows the two sides exchanged", tokenizer.source)
    amp_dtype = torch.bfloat16 if amp else None
    warn_if_slow(device, amp_dtype)
    if fast is None:
        model.to(device)
    else:
        fast.prepare_for_inference(model, device, amp_dtype, compiled)
        if keep_memory:
            fast.keep_freed_memory(device)
    inference = Inference(model, flip, left_right, amp_dtype, compile_mode(device) if compiled else None)
    return OpenCheckpoint(inference, tokenizer, img_size, mha, method)


def _image_size(given: int | None, stored) -> int:
    """The given size, else the one stored in the checkpoint, which may be text or a float, else 480."""
    if given is not None:
        whole = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        if not whole or not SMALLEST_SIDE <= given <= LARGEST_SIDE:
            raise UsageError(f"must be a whole number of at least {SMALLEST_SIDE} and at most {LARGEST_SIDE} pixels, "
                             f"not {printable_value(given)}", "img_size")
        return int(given)
    try:
        return image_size(str(stored or 480).removesuffix(".0"))
    except (argparse.ArgumentTypeError, ValueError) as error:  # ValueError: an int of more than 4300 digits
        raise UsageError(f"the checkpoint stored {printable_value(stored)}, which {error}; give the size",
                         "img_size") from error


def _heads(given: str | None, stored) -> tuple[str, tuple[int, ...]]:
    """The given heads by stage, else those stored in the checkpoint, else one each; as text and as numbers."""
    text = stored or "" if given is None else given
    try:
        if not isinstance(text, str):
            raise ValueError(f"must be text as in 4-4-4-4, not {printable_value(text)}")
        return text, parse_heads(text)
    except ValueError as error:
        raise UsageError(f"{'as stored in the checkpoint, ' if given is None else ''}{error}", "mha") from error
