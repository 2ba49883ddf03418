"""RIS-FUSION for other programs: load a checkpoint once, ask about many pictures.

    predictor = Predictor.from_checkpoint("ckpts/risfusion/model_best_lavt.pth")
    fused, mask, probability = predictor(visible, infrared, "the red car")
"""
import functools
import logging
import os
import re
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from bert import Tokenizer
from data.pictures import oddities_of_pair, to_picture
from evaluation.full_size import FullSizeFuser, SizedPair, check_settings
from evaluation.inference import FetchBert, Inference, open_checkpoint
from models.ris_fusion import Encoded, Sentences
from utils import hub
from utils.color import standardise
from utils.device import select_device
from utils.draw import nearest, resize, to_image
from utils.errors import InputError
from utils.sizes import TILE
from utils.text import first_line, printable, printable_value

logger = logging.getLogger(__name__)

KEPT_SENTENCES = 16  # that stay encoded; each takes 60 kB with the published text encoder

AnyImage = Image.Image | np.ndarray


class Prediction(NamedTuple):
    """What a sentence gives for a pair of images of height h and width w, the visible image's size."""

    fused: np.ndarray        # (h, w, 3) uint8 RGB, computed at `fuse_size`
    mask: np.ndarray         # (h, w) bool, True on the object: where the probability is above 0.5
    probability: np.ndarray  # (h, w) float32 in [0, 1], of belonging to the object


class Pair(NamedTuple):
    """Two images, ready for sentences; made by `Predictor.encode_pair`."""

    visible: np.ndarray   # (h, w, 3) uint8 RGB
    infrared: np.ndarray  # likewise, resampled to the visible image's size
    features: tuple[Encoded, ...]  # of the pair at img_size, and with `flip` of its mirror image
    sized: SizedPair | None  # at `fuse_size`, if that is not img_size; features only of what is fused whole


class Predictor:
    """Fuses pairs of images and finds what sentences refer to, as `test.py` does.

    Args:
        model: an `evaluation.inference.Inference`, on the device where it is to compute.
        tokenizer: of the model's vocabulary.
        img_size: the segmenter sees the fused image at this size, square, in pixels; above 32.
        device: of the model.
        fuse_size, tile: as of `from_checkpoint`.
        show_progress: show a bar on standard output where a picture is fused in tiles.
    """

    def __init__(self, model: Inference, tokenizer: Tokenizer, img_size: int, device: torch.device, *,
                 fuse_size: str | int = "native", tile: int = TILE, show_progress: bool = False):
        self.model = model
        self.tokenizer = tokenizer
        self.img_size = img_size
        self.device = device
        self.fuser = None if fuse_size == "network" else FullSizeFuser(model, device, fuse_size, tile, show_progress)
        self._encode_text = functools.lru_cache(KEPT_SENTENCES)(self._encode_new_text)
        _, self._unknown, self._end = tokenizer(["[UNK]"])[0][0, :3].tolist()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike, device: str | torch.device = "auto", *,
                        bert_tokenizer: str | os.PathLike | None = None, ck_bert: str | os.PathLike | None = None,
                        img_size: int | None = None, mha: str | None = None, flip: bool = False, amp: bool = False,
                        fuse_size: str | int = "native", tile: int = TILE,
                        fetch_bert: FetchBert | None = None) -> "Predictor":
        """A predictor from a checkpoint.

        Args:
            path: a file as training wrote it or as it was published, or a folder as `export.py` writes it; str or
                `pathlib.Path`.
            device: `auto` (an Ascend NPU, else a CUDA GPU, else the CPU), `cuda`, `npu` or `cpu`, an index may follow;
                or a `torch.device`.
            bert_tokenizer, ck_bert: folders with BERT's vocabulary, and with its configuration; str or `pathlib.Path`.
            img_size, mha: as in training. These four default to what the checkpoint says, else to those of `test.py`.
            flip: average with the result for the mirrored images, the words `left` and `right` exchanged.
            amp: compute in bfloat16 where accuracy permits, instead of float32.
            fuse_size: size at which `Prediction.fused` is computed. `native`: the visible image's own. `network`:
                `img_size`, as in training, then resized. A number: the longer side in pixels, 8 to 16384, then resized;
                smaller pictures are fused at their own size. Mask and probability do not depend on it.
            tile: unless `fuse_size` is `network`, pictures of more than 1.6 · `tile`² pixels are fused in tiles of at
                most this side, 128 to 16384 pixels, which bounds memory; 0: always whole.
            fetch_bert: gives a folder of bert-base-uncased where there is none; takes whether its weights are needed.
        Raises:
            ValueError: something does not exist, is damaged, of the wrong type, or does not fit; the sentence says
                what. Its `__cause__` may be the `utils.errors.InputError` with which the scripts end.
        """
        if not isinstance(device, str | torch.device):
            raise ValueError(f"device: must be a name, as in cuda:1, or a torch.device, not {printable_value(device)}")
        file, vocabulary, bert = (_as_path(name, value) for name, value in (
            ("path", path), ("bert_tokenizer", bert_tokenizer), ("ck_bert", ck_bert)))
        if file is None:
            raise ValueError("path: must be that of a checkpoint, not None")
        try:
            check_settings(fuse_size, tile)
            chosen = select_device(str(device))
            opened = open_checkpoint(file, chosen, bert_tokenizer=vocabulary, ck_bert=bert, img_size=img_size,
                                     mha=mha, flip=flip, amp=amp, fetch_bert=fetch_bert, must_fuse=True)
        except InputError as error:
            raise ValueError(str(error)) from error
        return cls(opened.model, opened.tokenizer, opened.img_size, chosen, fuse_size=fuse_size, tile=tile)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, device: str | torch.device = "auto", *,
                        revision: str | None = None, **options: Any) -> "Predictor":
        """A predictor from the Hugging Face hub, downloaded once into its cache, or from a local folder.

        Args:
            name: a repository, as in `ronniejiangC/RIS-FUSION`, or a folder: with `model.safetensors`, as `export.py`
                writes it, or with `model_best_lavt.pth`. BERT's vocabulary and configuration are downloaded, too,
                where neither the model nor the current folder has them.
            device: as of `from_checkpoint`.
            revision: branch, tag or commit of the repository; None: its main branch.
            options: further arguments of `from_checkpoint`.
        Raises:
            ValueError: as of `from_checkpoint`; also when there is no connection and the cache has no such model.
        """
        try:
            path = hub.find_model(_as_path("name", name) or "", revision)
        except InputError as error:
            raise ValueError(str(error)) from error
        return cls.from_checkpoint(path, device, **{"fetch_bert": hub.fetch_bert} | options)

    def __call__(self, visible: AnyImage, infrared: AnyImage, text: str) -> Prediction:
        """Fuse two images under the guidance of a sentence and find what it refers to.

        Args:
            visible, infrared: pictures of the same view, each a PIL image or a NumPy array (h, w), (h, w, 1), (h, w, 3)
                or (h, w, 4): uint8, or floats in [0, 1]; any other values are stretched from their 1st to their 99th
                percentile. The two may differ in size.
            text: the referring expression; beyond 20 word pieces it is cut.
        Raises:
            ValueError: an image or the sentence cannot be used; says why.
        """
        return self.predict(self.encode_pair(visible, infrared), text)

    @torch.inference_mode()
    def encode_pair(self, visible: AnyImage, infrared: AnyImage) -> Pair:
        """The part of a prediction that does not depend on the sentence, for `predict` with any number of sentences.

        It covers the preparation of the images and the fuser's two encoders, at `img_size` and, unless the picture is
        fused in tiles, at `fuse_size`. The segmenter runs for each sentence, because it sees the fused image, which
        depends on the sentence.

        Args:
            visible, infrared: as in a call.
        Raises:
            ValueError: an image cannot be used; says which and why.
        """
        pictures = []
        for name, image in (("visible", visible), ("infrared", infrared)):
            try:
                picture = to_picture(image)
            except Exception as error:  # Pillow decodes only now, and raises many kinds for a damaged file
                raise ValueError(f"{name}: {printable(first_line(error))}") from error
            if picture.note:
                logger.info("%s: %s", name, picture.note)
            pictures.append(picture.pixels)
        visible, infrared = pictures
        for oddity in oddities_of_pair(visible, infrared):
            logger.warning("%s", oddity)
        features = self.model.encode_pair(self._to_tensor(visible), self._to_tensor(infrared))
        infrared = _resampled(infrared, visible.shape[:2])
        if self.fuser is None or self.fuser.size_of(visible) == (self.img_size, self.img_size):
            return Pair(visible, infrared, features, None)
        return Pair(visible, infrared, features, self.fuser.encode(visible, infrared))

    @torch.inference_mode()
    def predict(self, pair: Pair, text: str) -> Prediction:
        """The prediction for one sentence about a pair of `encode_pair`.

        Raises:
            ValueError: the sentence is empty or no str, or the model's output is not finite.
        """
        sentence = self._encode_text(*(tuple(tensor[0].tolist()) for tensor in self._tokenize(text)))
        output = self.model.answer(pair.features, sentence)
        assert output.logits is not None  # every checkpoint has a segmenter
        if not (output.fused.isfinite().all() & output.logits.isfinite().all()):
            raise ValueError("the model's output for this pair and sentence is not finite (NaN or infinity)")
        if self.fuser is None or pair.sized is None:
            fused = to_image(output.fused[0])
        else:
            fused = self.fuser.fuse(pair.sized, sentence)
        height, width = pair.visible.shape[:2]
        # Nearest-neighbour, so that the mask is the thresholded probability and the same as the one test.py writes.
        probability = nearest(output.logits[0].softmax(0)[1].cpu().numpy(), (width, height))
        return Prediction(resize(fused, (width, height)), probability > 0.5, probability)

    def _to_tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """(h, w, 3) uint8 to (1, 3, S, S) float32, standardised, S being `img_size`."""
        square = torch.tensor(resize(pixels, (self.img_size, self.img_size)), device=self.device)
        return standardise(square.permute(2, 0, 1).float().div(255))[None]

    def _encode_new_text(self, input_ids: tuple[int, ...], attention_mask: tuple[int, ...]) -> tuple[Sentences, ...]:
        return self.model.encode_text(*(torch.tensor([row], device=self.device) for row in (input_ids, attention_mask)))

    def _tokenize(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the sentence must be a text that is not empty, not {printable_value(text)}")
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"the sentence '{printable(text)}' holds lone surrogates, which are no characters")
        input_ids, attention_mask = self.tokenizer([text])
        ids = input_ids[0, attention_mask[0] == 1].tolist()[1:]
        if ids[-1] != self._end:
            logger.warning("'%s' is cut: only its first %d word pieces are read; a word that the vocabulary lacks has "
                           "several", printable(text), len(ids))
        if set(ids) <= {self._unknown, self._end}:
            logger.warning("no word of '%s' is in the vocabulary of BERT, so the model cannot know what is meant",
                           printable(text))
        elif self._unknown in ids and (words := self._unknown_words(text)):
            logger.warning("not in the vocabulary of BERT, so read as unknown: %s", ", ".join(map(printable, words)))
        return input_ids, attention_mask

    def _unknown_words(self, text: str) -> list[str]:
        """The words of a sentence that the vocabulary has neither whole nor in pieces; punctuation is none."""
        words = list(dict.fromkeys(re.findall(r"\w+", text)))
        return [word for word, ids in zip(words, self.tokenizer(words)[0], strict=True) if self._unknown in ids]


def _as_path(name: str, path: Any) -> str | None:
    """A str, from anything that names a file or folder."""
    try:
        return None if path is None else os.fsdecode(path)
    except TypeError as error:
        raise ValueError(f"{name}: must be a path, not {printable_value(path)}") from error


def _resampled(infrared: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The infrared image at the (height, width) of the visible one."""
    (height, width), (to_height, to_width) = infrared.shape[:2], size
    if (height, width) == size:
        return infrared
    logger.info("infrared: resampled from %d×%d px to the visible image's %d×%d", width, height, to_width, to_height)
    if not 0.9 < width * to_height / (height * to_width) < 1.1:
        logger.warning("infrared: its proportions are not the visible image's; results are of use only if the two show "
                       "the same view")
    return resize(infrared, (to_width, to_height))
