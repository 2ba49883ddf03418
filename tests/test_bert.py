"""The text encoder and its tokens."""
import json
import shutil

import pytest
import torch
from transformers import BertForMaskedLM

from bert import Tokenizer, build_text_encoder, check_vocabulary, plain_config
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
    with pytest.raises(UsageError, match="there is no folder '.*nowhere'"):
        Tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"neither vocab\.txt nor tokenizer\.json"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize(("words", "message"), [
    ([], "the vocabulary is empty"),
    (VOCABULARY[:1] + VOCABULARY[2:], r"the vocabulary lacks \[UNK\]"),
    ([*VOCABULARY, "car"], "the word 'car' occurs twice, with ids 7 and 12"),
])
def test_a_vocabulary_that_is_none_of_bert_is_refused(words, message, tmp_path):
    with pytest.raises(InputError, match=f"^file.pth: {message}"):
        Tokenizer.from_vocabulary(words, "file.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(InputError, match=rf"vocab\.txt: {message}"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("words", [None, "[UNK]", {"[UNK]": 0}, [*VOCABULARY, 3], [*VOCABULARY, "\ud800"]])
def test_a_vocabulary_of_another_type_is_refused(words):
    with pytest.raises(InputError, match=r"^file.pth: the (vocabulary is of type|word with id 12 is no valid text)"):
        Tokenizer.from_vocabulary(words, "file.pth")


def test_empty_lines_at_the_end_of_a_vocabulary_are_no_words(vocabulary, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*VOCABULARY, "", ""]).encode())
    assert Tokenizer(vocabulary).vocabulary() == VOCABULARY


def tokenizer_json(folder, ids: dict) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}))


@pytest.mark.parametrize("wrong", [5_000_000, -1, 3, "car", None, [1], True])
def test_word_ids_beyond_the_table_are_refused(wrong, tmp_path):
    tokenizer_json(tmp_path, {word: i for i, word in enumerate(VOCABULARY)} | {"lane": wrong})
    with pytest.raises(InputError, match=r"tokenizer\.json: the id of the word .*; ids must be 0 to 11, each once"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"model": {"type": "BPE"}}', '{"model": {"vocab": [1]}}',
                                     "[" * 100_000, '{"model": 3}'])
def test_a_tokenizer_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer(str(tmp_path))


def test_a_vocabulary_larger_than_the_table_is_refused(tiny_bert):
    tokenizer = Tokenizer(tiny_bert)
    larger = Tokenizer.from_vocabulary([*tokenizer.vocabulary(), "zebra"], "file.pth")
    encoder = build_text_encoder(tiny_bert)
    check_vocabulary(tokenizer, encoder)
    with pytest.raises(InputError, match=f"file.pth has {len(larger)} words, .* {len(tokenizer)} embeddings"):
        check_vocabulary(larger, encoder)


def test_a_folder_chooses_no_code_for_its_tokenizer(vocabulary, tmp_path):
    """`tokenizer_config.json` can name a module beside it; only the vocabulary is read."""
    expected = Tokenizer(vocabulary)(["The red cars"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "do_lower_case": True}))
    (tmp_path / "evil.py").write_text("raise AssertionError")
    assert all(map(torch.equal, Tokenizer(vocabulary)(["The red cars"]), expected))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("tokenizer_config.json", '{"do_lower_case": false}', "do_lower_case is false, as of a cased BERT"),
    ("tokenizer.json", '"lowercase": false', "lowercase is false, as of a cased BERT"),
    ("tokenizer_config.json", "{", "cannot be read")])
def test_a_cased_bert_is_refused_rather_than_lower_cased(name, content, message, tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    if name == "tokenizer.json":
        whole = (folder / name).read_text()
        content = whole.replace('"lowercase": true', content)
        assert content != whole
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}:? .*{message}|{name}: {message}"):
        Tokenizer(str(folder))


def test_tokenizer_and_encoder_are_rebuilt_from_plain_values(tiny_bert):
    tokenizer, encoder = Tokenizer(tiny_bert), build_text_encoder(tiny_bert).eval()
    plain = json.loads(json.dumps({"config": plain_config(encoder), "vocabulary": tokenizer.vocabulary()}))
    other = build_text_encoder(config=plain["config"]).eval()
    other.load_state_dict(encoder.state_dict())
    sentences = ["the red disc on the left", "Ünknown 左边 [MASK]", ""]
    ids, mask = tokenizer(sentences)
    assert all(map(torch.equal, Tokenizer.from_vocabulary(plain["vocabulary"])(sentences), (ids, mask)))
    states = [bert(ids, attention_mask=mask).last_hidden_state for bert in (encoder, other)]
    assert torch.equal(*states)


@pytest.fixture
def configured(tiny_bert, tmp_path):
    """Build the text encoder of a folder with a changed config.json."""
    def build(pretrained: bool = True, **changes):
        shutil.copytree(tiny_bert, tmp_path, dirs_exist_ok=True)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return build_text_encoder(str(tmp_path), pretrained)
    return build


def test_a_whole_number_in_the_configuration_is_as_good_as_a_float(configured):
    encoder = configured(hidden_dropout_prob=0, layer_norm_eps=1, initializer_range=1, pretrained=False)
    assert (encoder.config.layer_norm_eps, encoder.config.hidden_dropout_prob) == (1.0, 0.0)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("hidden_size", "128", "hidden_size must be"), ("hidden_size", 127, "2 attention heads do not divide"),
    ("num_attention_heads", 0, "num_attention_heads must be"), ("num_attention_heads", 3, "heads do not divide"),
    ("num_hidden_layers", 10 ** 9, "num_hidden_layers must be"), ("num_hidden_layers", True, "num_hidden_layers must"),
    ("vocab_size", float("nan"), "vocab_size must be"), ("vocab_size", None, "vocab_size must be"),
    ("vocab_size", 10 ** 7, "a BERT of 1.3 billion parameters; at most 1 billion are supported"),
    ("intermediate_size", [512], "intermediate_size"),
    ("max_position_embeddings", 19, "max_position_embeddings must be"), ("hidden_dropout_prob", 2, "0 to 1, not 2"),
    ("hidden_act", "evil", "hidden_act is 'evil'"), ("hidden_act", ["gelu"], "hidden_act is"),
    ("layer_norm_eps", float("inf"), "layer_norm_eps must be"), ("pad_token_id", 10 ** 6, "pad_token_id must be"),
    ("pad_token_id", [0], "pad_token_id must be"),
    ("model_type", "roberta", "of type 'roberta', not BERT"), ("model_type", [1], "of type .*, not BERT"),
    ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
])
def test_a_wrong_value_in_the_configuration_is_named(name, value, message, configured):
    with pytest.raises(InputError, match=rf"config\.json.*{message}"):
        configured(pretrained=False, **{name: value})


@pytest.mark.parametrize("content", ["[]", "null", "{", "[" * 100_000, "\ud800"])
def test_a_configuration_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"config\.json"):
        build_text_encoder(str(tmp_path), pretrained=False)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_configuration_chooses_no_code_and_no_other_output(pretrained, configured, tiny_bert):
    ids, mask = Tokenizer(tiny_bert)(["the red disc"])
    encoder = configured(
        pretrained, return_dict=False, output_hidden_states=True, is_decoder=True, add_cross_attention=True,
        _attn_implementation="kernels-community/flash-attn", attn_implementation="kernels-community/flash-attn",
        auto_map={"AutoModel": "evil.Evil"}, architectures=["Evil"], dtype="evil", torch_dtype="float16",
        quantization_config={"quant_method": "evil"}, chunk_size_feed_forward=-1, pruned_heads={"0": [0]})
    plain = build_text_encoder(tiny_bert)
    encoder.load_state_dict(plain.state_dict())
    states = [bert.eval()(ids, attention_mask=mask).last_hidden_state for bert in (encoder, plain)]
    assert encoder.config._attn_implementation == "sdpa" and states[0].dtype == torch.float32
    assert torch.equal(*states)


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
    with pytest.raises(UsageError, match="there is no folder '.*nowhere'"):
        build_text_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"config\.json is not in this folder"):
        build_text_encoder(str(tmp_path))
    shutil.copy(f"{tiny_bert}/config.json", tmp_path)
    with pytest.raises(InputError, match="weights cannot be loaded"):
        build_text_encoder(str(tmp_path))
    assert build_text_encoder(str(tmp_path), pretrained=False).config.hidden_size == 128
    (tmp_path / "model.safetensors").write_bytes(b"damaged" * 10 ** 6)
    with pytest.raises(InputError, match="weights cannot be loaded"):
        build_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        build_text_encoder(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tiny_bert, tmp_path):
    encoder = build_text_encoder(tiny_bert)
    encoder.state_dict()["encoder.layer.1.output.dense.bias"][5] = value
    encoder.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"NaN or infinity, first in encoder\.layer\.1\.output\.dense\.bias"):
        build_text_encoder(str(tmp_path))


def test_a_network_of_more_parameters_than_its_weights_have_bytes_is_refused_before_it_is_built(
        tiny_bert, configured, monkeypatch):
    config = plain_config(build_text_encoder(tiny_bert))
    monkeypatch.setattr("transformers.BertModel.__init__", None)
    with pytest.raises(InputError, match=r"config\.json describes a BERT of 4\.\d\d million parameters; its weights, "
                                         r"\d+ bytes, are too few for that"):
        configured(vocab_size=32_000)
    with pytest.raises(InputError, match=r"last\.pth describes .* its weights, 4000000 bytes, are too few"):
        build_text_encoder(config=config | {"vocab_size": 32_000}, source="last.pth", weight_bytes=4_000_000)


def test_weights_that_lack_a_layer_are_refused(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lack 16 tensors, encoder\.layer\.2"):
        build_text_encoder(str(tmp_path))
