"""The text encoder and its tokens."""
import json
import shutil

import pytest
import torch
from transformers import BertForMaskedLM

from bert import Tokenizer, build_text_encoder
from utils.errors import InputError, UsageError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "car", "##s", "in", "middle", "lane"]


@pytest.fixture
def vocabulary(tmp_path) -> str:
    """A folder with nothing but vocab.txt, as people have it who downloaded by hand."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return str(tmp_path)


def test_a_sentence_becomes_ids_between_cls_and_sep_padded_with_zeros(vocabulary):
    ids, mask = Tokenizer(vocabulary)(["The red cars", ""])
    assert ids.shape == mask.shape == (2, 20)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids[0].tolist() == [2, 5, 6, 7, 8, 3] + 14 * [0]
    assert mask[0].tolist() == 6 * [1] + 14 * [0]
    assert ids[1].tolist() == [2, 3] + 18 * [0]


def test_a_long_sentence_loses_its_sep(vocabulary):
    ids, mask = Tokenizer(vocabulary)(["the red car " * 3000])
    assert ids[0].tolist() == [2] + (7 * [5, 6, 7])[:19]
    assert mask.sum() == 20


def test_a_sentence_of_unknown_words_is_all_unk(vocabulary):
    ids, _ = Tokenizer(vocabulary)(["左边的红色汽车 zebra"])
    assert set(ids[0].tolist()) == {0, 1, 2, 3}


def test_no_sentences_give_no_rows(vocabulary):
    ids, mask = Tokenizer(vocabulary)([])
    assert ids.shape == mask.shape == (0, 20)


def test_a_folder_without_vocabulary_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="--bert_tokenizer.*nowhere"):
        Tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"neither vocab\.txt nor tokenizer\.json"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_load_from_either_file_format_and_from_the_language_model(tiny_bert, tmp_path, file):
    encoder = build_text_encoder(tiny_bert)
    language_model = BertForMaskedLM(encoder.config)
    language_model.bert.load_state_dict(encoder.state_dict(), strict=False)
    if file == "model.safetensors":
        language_model.save_pretrained(tmp_path)
    else:
        language_model.config.save_pretrained(tmp_path)
        torch.save(language_model.state_dict(), tmp_path / file)
    loaded = build_text_encoder(str(tmp_path)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in encoder.state_dict().items())


def test_without_a_folder_bert_base_starts_from_random_weights():
    config = build_text_encoder("").config
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (30522, 12, 768)


def test_what_cannot_be_loaded_is_named(tiny_bert, tmp_path):
    with pytest.raises(UsageError, match="--ck_bert.*nowhere"):
        build_text_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"config\.json is not in this folder"):
        build_text_encoder(str(tmp_path))
    shutil.copy(f"{tiny_bert}/config.json", tmp_path)
    with pytest.raises(InputError, match="weights cannot be loaded"):
        build_text_encoder(str(tmp_path))
    assert build_text_encoder(str(tmp_path), pretrained=False).config.hidden_size == 128
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="weights cannot be loaded"):
        build_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        build_text_encoder(str(tmp_path))


def test_weights_that_lack_a_layer_are_refused(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lack 16 tensors, encoder\.layer\.2"):
        build_text_encoder(str(tmp_path))
