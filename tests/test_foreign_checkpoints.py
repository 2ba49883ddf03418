"""Checkpoints that other programs, PyTorch wrappers and devices wrote are read, safely, and as the same model."""
import argparse
import logging
import pathlib
import shutil
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from checkpoints import Harmful, same, swin_file
from conftest import arguments

from bert import Tokenizer, build_text_encoder, plain_config
from bert.tiny import write_tiny_bert
from evaluation.inference import open_checkpoint
from models import build_from_checkpoint, build_model
from predictor import Predictor
from utils import checkpoint
from utils.errors import InputError, UsageError
from utils.flags import BERT

PARTS = ("model", "prefusion_model", "bert_model")


class Pickled:
    """Is pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def opened(model, tiny_bert, tmp_path):
    """Open a checkpoint whose `args` are given."""
    def open_with(args: dict, **folders):
        content = checkpoint.pack(model, 0, {}) | {"args": argparse.Namespace(**args)}
        torch.save(content, tmp_path / "model.pth")
        folders = {"bert_tokenizer": tiny_bert, "ck_bert": tiny_bert} | folders
        return open_checkpoint(str(tmp_path / "model.pth"), torch.device("cpu"), **folders)
    return open_with


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))


@pytest.fixture
def other(tiny_bert):
    torch.manual_seed(7)
    return build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))


@pytest.fixture
def read(tmp_path, tiny_bert, caplog):
    """Save a content, read it and build its model; gives (content, model, what was logged before its last line)."""
    def through_a_file(content):
        path = str(tmp_path / "theirs.pth")
        torch.save(content, path)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = checkpoint.read(path)
            loaded = build_from_checkpoint(found, path, tiny_bert)
        return found, loaded, [record.getMessage() for record in caplog.records[:-1]]
    return through_a_file


def renamed(content: dict, rename, *parts: str) -> dict:
    return content | {part: {rename(key): tensor for key, tensor in content[part].items()} for part in parts}


@pytest.mark.parametrize(("rename", "named"), [
    (lambda key: f"module.{key}", "`module.`"),
    (lambda key: f"_orig_mod.{key}", "`_orig_mod.`"),
    (lambda key: f"module._orig_mod.{key}", "`_orig_mod.`, `module.`"),
    (lambda key: f"_orig_mod.module.{key}", "`_orig_mod.`, `module.`"),
    (lambda key: f"_fsdp_wrapped_module.{key}", "`_fsdp_wrapped_module.`"),
    (lambda key: f"_checkpoint_wrapped_module.{key}", "`_checkpoint_wrapped_module.`"),
])
def test_prefixes_of_wrapped_modules_are_taken_off(rename, named, model, read):
    content = checkpoint.pack(model, 0, {})
    _, loaded, said = read(renamed(content, rename, *PARTS))
    assert same(loaded.state_dict(), model.state_dict())
    count = sum(len(content[part]) for part in PARTS)
    assert [line.partition("theirs.pth: ")[2] for line in said] == [
        f"prefixes of wrapped modules removed from the names of {count} tensors: {named}"]


def test_the_prefix_of_a_wrapped_submodule_is_taken_off(model, read):
    content = checkpoint.pack(model, 0, {})
    _, loaded, said = read(renamed(content, lambda key: key.replace("backbone.", "backbone._orig_mod."), "model"))
    assert same(loaded.state_dict(), model.state_dict())
    assert len(said) == 1


def test_a_key_that_is_there_with_and_without_its_prefix_is_refused(model, read):
    content = checkpoint.pack(model, 0, {})
    content["model"]["module.backbone.norm0.weight"] = torch.zeros(32)
    with pytest.raises(InputError, match=r"theirs\.pth: 'backbone\.norm0\.weight' occurs twice"):
        read(content)


def test_pooler_and_position_ids_of_bert_are_dropped(model, read):
    content = checkpoint.pack(model, 0, {})
    content["bert_model"] |= {"embeddings.position_ids": torch.arange(64)[None], "pooler.dense.bias": torch.zeros(128)}
    _, loaded, said = read(content)
    assert same(loaded.state_dict(), model.state_dict())
    assert len(said) == 1 and said[0].endswith("of BERT dropped: embeddings.position_ids, pooler.dense.bias")


def test_the_pooler_of_bert_in_a_lavt_file_is_dropped_too(tmp_path):
    torch.save({"model": {"text_encoder.pooler.dense.bias": torch.zeros(8), "backbone.norm0.bias": torch.zeros(8)}},
               tmp_path / "lavt_one.pth")
    assert list(checkpoint.read(str(tmp_path / "lavt_one.pth"))["model"]) == ["backbone.norm0.bias"]


def test_any_other_key_is_still_refused(model, read):
    content = checkpoint.pack(model, 0, {})
    content["bert_model"]["cls.predictions.bias"] = torch.zeros(9)
    with pytest.raises(InputError, match=r"the model lacks 1 of its tensors, cls\.predictions\.bias first"):
        read(content)


def test_an_absent_relative_position_index_is_computed(model, read):
    content = checkpoint.pack(model, 0, {})
    kept = {key: tensor for key, tensor in content["model"].items() if "relative_position_index" not in key}
    _, loaded, said = read(content | {"model": kept})
    assert same(loaded.state_dict(), model.state_dict())
    assert len(said) == 1 and "relative_position_index is absent in 8 blocks" in said[0]
    del kept["backbone.norm0.weight"]
    with pytest.raises(InputError, match=r"1 of 227 tensors differ; backbone\.norm0\.weight is absent"):
        read(content | {"model": kept})


def test_a_relative_position_index_with_other_values_is_refused(model, read):
    content = checkpoint.pack(model, 0, {})
    key = "backbone.layers.1.blocks.0.attn.relative_position_index"
    content["model"][key] = content["model"][key] + 10 ** 6
    with pytest.raises(InputError, match=rf"'model' in .*theirs\.pth does not fit: {key} does not have the values"):
        read(content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_computed_in_float32(dtype, model, read):
    content = checkpoint.pack(model, 0, {})
    halved = content | {part: {key: tensor.to(dtype) if tensor.is_floating_point() else tensor
                               for key, tensor in content[part].items()} for part in PARTS}
    found, loaded, said = read(halved)
    for state in (found["prefusion_model"], loaded.fuser.state_dict()):
        assert state["net.outc.weight"].dtype == torch.float32
        assert torch.equal(state["net.outc.weight"], halved["prefusion_model"]["net.outc.weight"].float())
    assert found["prefusion_model"]["net.y_inc.block.1.num_batches_tracked"].dtype == torch.int64
    count = sum(tensor.dtype == dtype for part in PARTS for tensor in halved[part].values())
    assert len(said) == 1 and f"{count} tensors of type {str(dtype)[6:]} converted to float32" in said[0]


def test_numpy_scalars_and_paths_are_read_as_plain_values(model, read):
    big_endian = Pickled(np.float64(0).__reduce__()[0], np.dtype(">f4"), np.array(1.5, ">f4").tobytes())
    values = {"a": np.float64(0.5), "b": np.int64(480), "c": np.bool_(True), "d": np.str_("4-4"), "e": big_endian,
              "f": pathlib.PurePosixPath("/data/bert"),
              "g": Pickled(pathlib.PosixPath, "/", "data", "x"), "h": Pickled(pathlib.WindowsPath, "C:\\", "bert")}
    found, _, said = read(checkpoint.pack(model, 0, argparse.Namespace(**values), best=np.float32(0.25)))
    assert vars(found["args"]) == {"a": 0.5, "b": 480, "c": True, "d": "4-4", "e": 1.5, "f": "/data/bert",
                                   "g": "/data/x", "h": "C:\\bert"}
    assert {type(value) for value in vars(found["args"]).values()} == {float, int, bool, str}
    assert found["best"] == 0.25 and said == []


def test_names_of_older_numpy_and_newer_python_are_read(model, read, monkeypatch):
    def of_module(module: str, function, *values):
        stand_in = types.ModuleType(module)
        setattr(stand_in, function, lambda *_: None)
        getattr(stand_in, function).__module__ = module
        getattr(stand_in, function).__qualname__ = function
        monkeypatch.setitem(sys.modules, module, stand_in)
        return Pickled(getattr(stand_in, function), *values)

    found, _, _ = read(checkpoint.pack(model, 0, {
        "score": of_module("numpy.core.multiarray", "scalar", np.dtype("f8"), np.float64(0.5).tobytes()),
        "path": of_module("pathlib._local", "PosixPath", "/", "data")}))
    assert found["args"] == {"score": 0.5, "path": "/data"}


@pytest.mark.parametrize("value", [
    Pickled(np.float64(0).__reduce__()[0], np.dtype("O"), b"12345678"), np.datetime64("2026-01-01")])
def test_numpy_values_that_are_no_numbers_or_text_are_refused(value, model, read):
    with pytest.raises(InputError, match=r"theirs\.pth holds a NumPy value of type '(O8|M8)'.* save it again"):
        read(checkpoint.pack(model, 0, {"value": value}))


def test_numpy_arrays_are_still_refused(model, read):
    with pytest.raises(InputError, match=r"holds more than weights and plain values, namely numpy\.\S*_reconstruct"):
        read(checkpoint.pack(model, 0, {"value": np.zeros(3)}))


def test_a_device_that_this_machine_lacks_does_not_matter(model, read):
    args = argparse.Namespace(device=Pickled(torch.device, "npu", 0), gpu=torch.device("cuda:1"), img_size=96, mha="")
    found, loaded, _ = read(checkpoint.pack(model, 0, args))
    assert same(loaded.state_dict(), model.state_dict())
    assert found["args"].device == "npu:0" and found["args"].gpu == torch.device("cuda:1")
    assert checkpoint.stored_args(found) == {"device": "npu:0", "img_size": 96, "mha": ""}


@pytest.fixture
def pickled_on_npu(monkeypatch):
    """Turns a tensor into one that is pickled as older releases of torch_npu do, storages being tagged `npu:0`."""
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _rebuild_npu_tensor(*_):
        raise AssertionError("the function of torch_npu was called")

    _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor = _rebuild_npu_tensor
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "npu:0")

    def pickled(tensor, layout=2):
        storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
        return Pickled(_rebuild_npu_tensor, storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(),
                       True, OrderedDict(), layout)
    return pickled


@pytest.mark.parametrize("layout", [-1, 0, 2])
def test_tensors_of_an_npu_are_read_without_one(layout, model, read, pickled_on_npu):
    content = checkpoint.pack(model, 0, {"device": Pickled(torch.device, "npu", 0)})
    theirs = {part: {key: pickled_on_npu(tensor, layout) for key, tensor in content[part].items()} for part in PARTS}
    view = torch.arange(12.0).view(3, 4)[1:, ::2].t()
    found, loaded, _ = read(content | theirs | {"view": pickled_on_npu(view, layout)})
    assert same(loaded.state_dict(), model.state_dict())
    assert torch.equal(found["view"], view) and found["view"].device.type == "cpu"


@pytest.mark.parametrize("layout", [3, 29, "FRACTAL_NZ", None])
def test_a_layout_that_only_an_npu_can_read_is_refused_with_the_way_on(layout, model, read, pickled_on_npu):
    content = checkpoint.pack(model, 0, {})
    content["model"]["backbone.norm0.weight"] = pickled_on_npu(torch.ones(32), layout)
    with pytest.raises(InputError, match=r"theirs\.pth holds tensors in a layout that only an Ascend NPU "
                                         rf"can read \(format {layout}\); save it again on the NPU machine.*\.cpu\(\)"):
        read(content)


def test_other_code_is_refused_and_pytorch_is_left_as_it_was(model, read, tmp_path, pickled_on_npu):
    trace = tmp_path / "harm done"
    before = set(torch.serialization.get_safe_globals())
    for harm in (Harmful(trace), Pickled(pathlib.Path.mkdir, trace), Pickled(eval, f"open({str(trace)!r}, 'w')")):
        with pytest.raises(InputError, match=r"holds more than weights and plain values"):
            read(checkpoint.pack(model, 0, {"value": harm, "device": Pickled(torch.device, "npu", 0)}))
    assert not trace.exists()
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save(Pickled(torch.device, "npu", 0), tmp_path / "device.pth")
    with pytest.raises(RuntimeError, match="npu"):
        torch.load(tmp_path / "device.pth", weights_only=True)


def of_another_trainer(tensors: dict, prefix: str = "") -> dict:
    """What a compiled model in DDP leaves, in half precision."""
    return {f"module._orig_mod.{prefix}{key}": tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()}


def in_half(module) -> dict:
    return {key: tensor.half().float() if tensor.is_floating_point() else tensor
            for key, tensor in module.state_dict().items()}


def test_every_flag_that_names_weights_reads_them_alike(model, other, tmp_path):
    path = str(tmp_path / "theirs.pth")
    torch.save(of_another_trainer(model.fuser.state_dict()), path)
    checkpoint.load_fuser(other.fuser, path)
    assert same(other.fuser.state_dict(), in_half(model.fuser))

    backbone = model.segmenter.backbone
    lavt_one = of_another_trainer(backbone.state_dict(), "backbone.")
    lavt_one |= of_another_trainer(model.text_encoder.state_dict(), "text_encoder.")
    torch.save({"model": lavt_one, "args": argparse.Namespace(device=Pickled(torch.device, "npu", 0))}, path)
    checkpoint.load_lavt_one(other, path, with_head=False)
    assert same(other.segmenter.backbone.state_dict(), in_half(backbone))
    assert same(other.text_encoder.state_dict(), in_half(model.text_encoder))

    key = "layers.2.blocks.1.mlp.fc1.weight"
    torch.nn.init.zeros_(other.segmenter.backbone.get_parameter(key))
    checkpoint.load_swin_weights(other.segmenter.backbone, swin_file(of_another_trainer(backbone.state_dict()), path))
    assert torch.equal(other.segmenter.backbone.state_dict()[key], in_half(backbone)[key])


def test_a_run_goes_on_from_weights_with_prefixes(model, other, tmp_path):
    content = renamed(checkpoint.pack(model, 0, {}), lambda key: f"module.{key}", *PARTS)
    checkpoint.save(content, str(tmp_path / "last.pth"))
    checkpoint.load_parts(other, checkpoint.read(str(tmp_path / "last.pth")), "last.pth")
    assert same(other.state_dict(), model.state_dict())


def test_a_predictor_gives_the_same_from_such_a_file(model, tmp_path, tiny_bert, pickled_on_npu):
    ours, theirs = str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth")
    content = checkpoint.pack(model, 0, {"img_size": 64})
    checkpoint.save(content, ours)
    content = renamed(content, lambda key: f"module.{key}", *PARTS)
    content["prefusion_model"] = {key: pickled_on_npu(tensor) for key, tensor in content["prefusion_model"].items()}
    torch.save(content | {"args": argparse.Namespace(device=Pickled(torch.device, "npu", 0), img_size=np.int64(64),
                                                     ck_bert=pathlib.Path(tiny_bert))}, theirs)
    visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    first = Predictor.from_checkpoint(ours, "cpu", bert_tokenizer=tiny_bert, ck_bert=tiny_bert)
    second = Predictor.from_checkpoint(theirs, "cpu", bert_tokenizer=tiny_bert)
    for one, two in zip(first(visible, infrared, "the disc"), second(visible, infrared, "the disc"), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(("stored", "size"), [(None, 480), (96, 96), (96.0, 96), ("96", 96)])
def test_a_stored_size_is_used_if_it_is_one(stored, size, opened):
    assert opened({"img_size": stored}).img_size == size


@pytest.mark.parametrize("size", [
    float("nan"), -1, 32, 10 ** 7, "large", [480, 480], True,
    pytest.param(10 ** 600, id="digits"), pytest.param("x" * 10 ** 6, id="long")])
def test_a_stored_size_that_is_none_is_refused_with_the_argument(size, opened):
    with pytest.raises(UsageError, match=r"^img_size: the checkpoint stored .*; give the size") as raised:
        opened({"img_size": size})
    assert len(str(raised.value)) < 1000


def test_stored_folders_of_any_type_are_harmless(opened):
    stored = {"ck_bert": torch.zeros(2), "bert_tokenizer": ["a"], "mha": torch.ones(4), "img_size": {"height": 480}}
    with pytest.raises(UsageError, match=rf"^bert_tokenizer: there is no vocabulary or configuration .*\({BERT}\); "
                                         r"name a folder with .*, which serves for both"):
        opened(stored, ck_bert=None, bert_tokenizer=None)


@pytest.mark.parametrize("given", ["ck_bert", "bert_tokenizer"])
def test_a_folder_given_for_one_serves_for_both(given, opened, tiny_bert):
    inference = opened({"img_size": 64}, **{"ck_bert": None, "bert_tokenizer": None, given: tiny_bert})
    assert inference.tokenizer.source == tiny_bert


def test_a_folder_with_one_of_two_is_refused_for_the_other(opened, tiny_bert, tmp_path):
    shutil.copy(f"{tiny_bert}/vocab.txt", tmp_path)
    with pytest.raises(UsageError, match=r"^ck_bert: there is no configuration .*name a folder with config\.json$"):
        opened({}, bert_tokenizer=tmp_path, ck_bert=None)
    with pytest.raises(UsageError, match="^ck_bert: there is no folder 'nowhere'"):
        opened({}, ck_bert="nowhere")


def with_bert(model, tiny_bert, **changes) -> dict:
    """A checkpoint that carries BERT's configuration and vocabulary, trained with a folder that is gone."""
    carried = {"config": plain_config(model.text_encoder), "vocabulary": Tokenizer(tiny_bert).vocabulary()}
    return checkpoint.pack(model, 0, {"img_size": 64, "ck_bert": "/gone", "bert_tokenizer": "/gone"},
                           bert=carried | changes)


def test_a_checkpoint_that_carries_bert_needs_no_folder(model, tmp_path, tiny_bert, monkeypatch):
    checkpoint.save(with_bert(model, tiny_bert), str(tmp_path / "model.pth"))
    monkeypatch.chdir(tmp_path)  # where there is no folder bert/
    alone = open_checkpoint(str(tmp_path / "model.pth"), torch.device("cpu"))
    with_folders = open_checkpoint(tmp_path / "model.pth", torch.device("cpu"), ck_bert=tiny_bert)
    assert alone.tokenizer.source == str(tmp_path / "model.pth") and with_folders.tokenizer.source == tiny_bert
    images = torch.rand(2, 1, 3, 64, 64)
    outputs = [one.model(*images, *one.tokenizer(["the red disc"])) for one in (alone, with_folders)]
    assert all(map(torch.equal, *outputs))


def test_folders_on_the_command_line_win_over_what_a_checkpoint_carries(model, tmp_path, tiny_bert):
    path = str(tmp_path / "model.pth")
    checkpoint.save(with_bert(model, tiny_bert, config={"hidden_size": "large"}, vocabulary=[]), path)
    open_checkpoint(path, torch.device("cpu"), ck_bert=tiny_bert, bert_tokenizer=tiny_bert)
    checkpoint.save(checkpoint.read(path) | {"bert": 3}, path.replace("model", "three"))
    open_checkpoint(path.replace("model", "three"), torch.device("cpu"), ck_bert=tiny_bert, bert_tokenizer=tiny_bert)
    with pytest.raises(InputError, match=r"model\.pth: the vocabulary is empty"):
        open_checkpoint(path, torch.device("cpu"))


def test_what_a_checkpoint_carries_wins_over_the_folders_that_it_names(model, tmp_path, tiny_bert):
    path, content = str(tmp_path / "model.pth"), with_bert(model, tiny_bert)
    write_tiny_bert(str(tmp_path / "other"), ["another vocabulary"])
    named = dict.fromkeys(["ck_bert", "bert_tokenizer"], str(tmp_path / "other"))
    checkpoint.save(content | {"args": content["args"] | named}, path)
    found = open_checkpoint(path, torch.device("cpu"))
    assert found.tokenizer.vocabulary() == content["bert"]["vocabulary"]


def test_without_the_weights_of_bert_those_of_the_folder_are_read_though_its_configuration_is_carried(
        model, tmp_path, tiny_bert):
    path, content = str(tmp_path / "model.pth"), with_bert(model, tiny_bert)
    del content["bert_model"]
    checkpoint.save(content | {"args": {"img_size": 64, "ck_bert": tiny_bert}}, path)
    opened = open_checkpoint(path, torch.device("cpu"))
    weights = build_text_encoder(tiny_bert).embeddings.word_embeddings.weight
    assert opened.tokenizer.source == path
    assert torch.equal(opened.model.model.text_encoder.embeddings.word_embeddings.weight, weights)


@pytest.mark.parametrize(("changes", "message"), [
    ({"config": {"hidden_size": "large"}}, r"BERT configuration in .*model\.pth: hidden_size must be"),
    ({"config": None}, r"model\.pth: the entry 'bert' does not hold"),
    ({"vocabulary": "[UNK]"}, r"model\.pth: the entry 'bert' does not hold"),
    ({"vocabulary": ["[UNK]", 3]}, r"model\.pth: the word with id 1 is no valid text"),
])
def test_what_a_checkpoint_carries_of_bert_is_checked(changes, message, model, tmp_path, tiny_bert):
    checkpoint.save(with_bert(model, tiny_bert, **changes), str(tmp_path / "model.pth"))
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(tmp_path / "model.pth"), torch.device("cpu"))


@pytest.mark.parametrize("mha", [[4, 4, 4, 4], 4, "4-4", "٤-4-4-4"])
def test_stored_heads_that_are_none_are_refused_with_the_argument(mha, opened):
    with pytest.raises(UsageError, match="^mha: as stored in the checkpoint, "):
        opened({"mha": mha})
