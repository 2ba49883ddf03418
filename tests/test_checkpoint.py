"""Weights: what is read, what is refused, and how it is written."""
import argparse
import json
import logging
import os
import threading
import warnings
import zipfile

import pytest
import torch
from checkpoints import Harmful, same, swin_file
from conftest import arguments

from bert import plain_config
from models import build_from_checkpoint, build_model
from utils import checkpoint
from utils.errors import InputError, UsageError


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))


def test_a_released_checkpoint_with_its_namespace_is_read(model, tmp_path, tiny_bert):
    released = {"model": model.segmenter.state_dict(), "prefusion_model": model.fuser.state_dict(),
                "bert_model": model.text_encoder.state_dict(), "epoch": 9,
                "args": argparse.Namespace(img_size=480, device=torch.device("cuda:0"), mha="")}
    torch.save(released, tmp_path / "model_best_lavt.pth")
    content = checkpoint.read(str(tmp_path / "model_best_lavt.pth"))
    assert checkpoint.stored_args(content)["img_size"] == 480
    loaded = build_from_checkpoint(content, "model_best_lavt.pth", tiny_bert)
    assert not loaded.training
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(("swin_type", "window12", "channels"), [
    ("tiny", True, 8), ("small", False, 6), ("micro", True, 4)])
def test_sizes_are_read_off_the_tensors(swin_type, window12, channels, tiny_bert):
    args = arguments(swin_type=swin_type, window12=window12, prefusion_base_ch=channels, ck_bert=tiny_bert)
    model = build_model(args)
    content = checkpoint.pack(model, 0, {})
    assert same(build_from_checkpoint(content, "file", tiny_bert).state_dict(), model.state_dict())


def test_a_checkpoint_without_bert_takes_that_of_the_folder_and_says_so(model, tiny_bert, caplog):
    content = checkpoint.pack(model, 0, {})
    del content["bert_model"]
    with caplog.at_level(logging.WARNING):
        loaded = build_from_checkpoint(content, "file.pth", tiny_bert)
    assert "WARNING: file.pth has no 'bert_model'" in caplog.text
    assert same(loaded.text_encoder.state_dict(), model.text_encoder.state_dict())


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path):
    trace = tmp_path / "harm done"
    torch.save({"model": {}, "args": Harmful(trace)}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth holds more than weights and plain values, namely posix.mkdir"):
        checkpoint.read(str(tmp_path / "bad.pth"))
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"this is no checkpoint\n" * 20])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"file\.pth cannot be read"):
        checkpoint.read(str(tmp_path / "file.pth"))


def test_a_truncated_file_is_refused(model, tmp_path):
    path = tmp_path / "cut.pth"
    checkpoint.save(checkpoint.pack(model, 0, {}), str(path))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"cut\.pth cannot be read"):
        checkpoint.read(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no file .*absent"):
        checkpoint.read(str(tmp_path / "absent.pth"))


def test_a_dict_that_is_no_checkpoint_is_refused(model, tiny_bert):
    with pytest.raises(InputError, match="has no 'model', but state_dict"):
        build_from_checkpoint({"state_dict": {}}, "file", tiny_bert)
    content = checkpoint.pack(model, 0, {})
    del content["model"]["backbone.patch_embed.proj.weight"]
    with pytest.raises(InputError, match=r"backbone\.patch_embed\.proj\.weight"):
        build_from_checkpoint(content, "file", tiny_bert)


def test_a_bert_of_another_shape_is_refused(model, tiny_bert):
    content = checkpoint.pack(model, 0, {})
    content["bert_model"] = {key: tensor for key, tensor in content["bert_model"].items() if "layer.1" not in key}
    with pytest.raises(InputError, match=r"'bert_model' in file.*encoder\.layer\.1.* is absent"):
        build_from_checkpoint(content, "file", tiny_bert)


def test_a_bert_far_larger_than_the_weights_is_refused_before_it_is_built(model, tmp_path):
    content = checkpoint.pack(model, 0, {})
    config = plain_config(model.text_encoder) | {"vocab_size": 32_000}
    with pytest.raises(InputError, match=r"the BERT configuration in last\.pth describes .* too few for that"):
        build_from_checkpoint(content, "last.pth", "", bert_config=config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json describes .* too few for that"):
        build_from_checkpoint(content, "last.pth", str(tmp_path))


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = str(tmp_path / "last.pth")
    checkpoint.save({"epoch": 1}, path)

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"last\.pth: it cannot be written \(No space left"):
        checkpoint.save({"epoch": 2}, path)
    assert checkpoint.read(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.fixture
def read_changed(model, tmp_path):
    """Read a checkpoint after changes to its content."""
    def read(**changes):
        torch.save(checkpoint.pack(model, 0, {}) | changes, tmp_path / "odd.pth")
        return checkpoint.read(str(tmp_path / "odd.pth"))
    return read


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(), "quantised": quantised, "complex": lambda: torch.ones(3) * 1j,
    "on the device meta": lambda: torch.empty(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "of 4000000000000 bytes, of which the file holds 4": lambda: torch.ones(1).expand(10 ** 6, 10 ** 6),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.parametrize("part", ["model", "training", "args"])
def test_tensors_that_are_not_plain_are_refused_wherever_they_are(kind, part, read_changed):
    tensor = ODD_TENSORS[kind]()
    content, name = {"model": ({"weight": tensor}, r"model\.weight"),
                     "args": (argparse.Namespace(size=tensor), r"args\.size"),
                     "training": ({"states": [{0: (tensor,)}]}, r"training\.states\.0\.0\.0")}[part]
    with pytest.raises(InputError, match=rf"odd\.pth: the tensor {name} is {kind}.*; save it again as a dense CPU"):
        read_changed(**{part: content})


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": []}, "the entry 'model' is of type list, not a dict of tensors"),
    ({"bert_model": torch.ones(3)}, "the entry 'bert_model' is of type Tensor, not a dict of tensors"),
    ({"prefusion_model": {"net.outc": [1.0]}}, r"net\.outc of 'prefusion_model' is of type list, not a tensor"),
    ({"model": {3: torch.ones(3)}}, "a key of 'model' is of type int, not text"),
])
def test_state_dicts_of_anything_but_named_tensors_are_refused(changes, message, read_changed):
    with pytest.raises(InputError, match=rf"odd\.pth: {message}"):
        read_changed(**changes)


def test_a_file_with_keys_that_are_no_text_is_refused(tmp_path):
    torch.save({0: torch.ones(3)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth: a key is of type int, not text"):
        checkpoint.read(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, model, read_changed):
    fuser = model.fuser.state_dict()
    fuser["net.outc.bias"] = torch.full_like(fuser["net.outc.bias"], value, dtype=dtype)
    with pytest.raises(InputError, match=r"odd\.pth: the tensor 'net\.outc\.bias' of 'prefusion_model' holds NaN"):
        read_changed(prefusion_model=fuser)


def test_other_values_that_are_not_finite_are_read(read_changed):
    assert read_changed(best=float("-inf"), training={"moments": torch.full((3,), float("nan"))})["best"] < 0


def test_weights_that_are_not_finite_are_refused_in_a_bare_state_dict_too(tmp_path):
    torch.save({"net.outc.bias": torch.tensor([float("nan")])}, tmp_path / "fuser.pth")
    with pytest.raises(InputError, match=r"fuser\.pth: the tensor 'net\.outc\.bias' holds NaN"):
        checkpoint.read(str(tmp_path / "fuser.pth"))


def test_a_list_that_holds_itself_is_read_to_its_end(read_changed):
    cycle, found = [], []
    cycle.append(cycle)
    reading = threading.Thread(target=lambda: found.append(read_changed(history=cycle)), daemon=True)
    reading.start()
    reading.join(60)  # without an end the test fails
    assert found and "history" in found[0]


def test_keys_are_printed_cut_and_without_escape_sequences(model, tiny_bert, tmp_path):
    content = checkpoint.pack(model, 0, {})
    content["model"]["\x1b[31m" + "x" * 10 ** 6] = torch.ones(3)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"lacks 1 of its tensors, \\x1b\[31mx+… first") as raised:
        build_from_checkpoint(checkpoint.read(str(tmp_path / "odd.pth")), "odd.pth", tiny_bert)
    assert len(str(raised.value)) < 1000


def test_whole_numbers_are_no_weights(model, tiny_bert):
    content = checkpoint.pack(model, 0, {})
    content["prefusion_model"]["net.outc.bias"] = content["prefusion_model"]["net.outc.bias"].to(torch.int8)
    with pytest.raises(InputError, match=r"net\.outc\.bias has shape \(1,\) of whole numbers, expected \(1,\)$"):
        build_from_checkpoint(content, "odd.pth", tiny_bert)


def test_args_of_a_checkpoint_are_plain_values_under_text(read_changed):
    odd = argparse.Namespace(size=480, heads=[4, 4], device=torch.ones(2), nested=[[1]])
    vars(odd)[3] = "three"
    assert checkpoint.stored_args(read_changed(args=odd)) == {"size": 480, "heads": [4, 4]}
    assert checkpoint.stored_args(read_changed(args=[1])) == {}


@pytest.mark.parametrize(("part", "key", "shape", "message"), [
    ("model", "backbone.patch_embed.proj.weight", (), "has too few dimensions"),
    ("model", "backbone.layers.0.blocks.0.attn.relative_position_bias_table", (169,), "has too few dimensions"),
    ("prefusion_model", "net.txt.proj.weight", (3,), "has too few dimensions"),
    ("prefusion_model", "net.y_inc.block.0.weight", (10 ** 6, 0, 3, 3), "prefusion_base_ch must be .* not 1000000"),
])
def test_tensors_of_shapes_that_no_network_has_are_refused_before_anything_is_built(part, key, shape, message, model):
    content = checkpoint.pack(model, 0, {})
    content[part] = content[part] | {key: torch.zeros(shape)}
    with pytest.raises(InputError, match=f"^odd.pth.*{message}"):
        build_from_checkpoint(content, "odd.pth", "")


@pytest.mark.parametrize("rows", [0, 168, 170])
def test_a_bias_table_of_no_window_is_skipped(rows, model, tmp_path, caplog):
    backbone = model.segmenter.backbone.state_dict()
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    path = swin_file(backbone | {table: torch.zeros(rows, 2)}, tmp_path / "swin.pth")
    with caplog.at_level(logging.INFO):
        checkpoint.load_swin_weights(model.segmenter.backbone, path)
    assert "0 resized, 4 skipped" in caplog.text


def test_swin_weights_load_and_the_rest_keeps_its_start(model, tiny_bert, tmp_path, caplog):
    backbone = model.segmenter.backbone.state_dict()
    args = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert,
                     pretrained_swin_weights=swin_file(backbone, tmp_path / "swin.pth"))
    with caplog.at_level(logging.INFO):
        loaded = build_model(args).segmenter.backbone.state_dict()
    assert torch.equal(loaded["layers.2.blocks.1.mlp.fc1.weight"], backbone["layers.2.blocks.1.mlp.fc1.weight"])
    assert not torch.equal(loaded["layers.2.res_gate.0.weight"], backbone["layers.2.res_gate.0.weight"])
    assert "0 resized, 3 skipped" in caplog.text


def test_bias_tables_of_another_window_are_resized_bicubically(model, tiny_bert, tmp_path, caplog):
    backbone = model.segmenter.backbone.state_dict()
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    offsets = torch.linspace(0, 3, 13)
    heads = [torch.sin(offsets)[:, None] * offsets, offsets[:, None] * torch.cos(offsets)]  # smooth, and unlike
    backbone[name] = torch.stack([head.flatten() for head in heads], dim=1)
    args = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert, window12=True,
                     pretrained_swin_weights=swin_file(backbone, tmp_path / "swin.pth"))
    with caplog.at_level(logging.INFO):
        table = build_model(args).segmenter.backbone.state_dict()[name]
    for i, head in enumerate(heads):
        expected = torch.nn.functional.interpolate(head[None, None], size=(23, 23), mode="bicubic")[0, 0]
        torch.testing.assert_close(table[:, i].reshape(23, 23), expected)
    assert "8 resized" in caplog.text


def test_lavt_one_fills_backbone_and_bert_and_the_head_only_on_request(model, tiny_bert, tmp_path):
    lavt_one = {f"{prefix}.{key}": tensor for prefix, module in (
        ("backbone", model.segmenter.backbone), ("classifier", model.segmenter.classifier),
        ("text_encoder", model.text_encoder)) for key, tensor in module.state_dict().items()}
    lavt_one["text_encoder.pooler.dense.weight"] = torch.zeros(128, 128)
    path = str(tmp_path / "lavt_one.pth")
    torch.save({"model": lavt_one, "epoch": 39}, path)
    for with_head in (False, True):
        torch.manual_seed(7)
        other = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))
        checkpoint.load_lavt_one(other, path, with_head)
        assert same(other.segmenter.backbone.state_dict(), model.segmenter.backbone.state_dict())
        assert same(other.text_encoder.state_dict(), model.text_encoder.state_dict())
        assert same(other.segmenter.classifier.state_dict(), model.segmenter.classifier.state_dict()) == with_head


@pytest.mark.parametrize("bare", [True, False])
def test_the_fuser_loads_from_a_bare_state_dict_or_a_checkpoint(bare, model, tiny_bert, tmp_path):
    path = str(tmp_path / "fuser.pth")
    checkpoint.save(model.fuser.state_dict() if bare else checkpoint.pack(model, 0, {}), path)
    torch.manual_seed(7)
    other = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))
    checkpoint.load_fuser(other.fuser, path)
    assert same(other.fuser.state_dict(), model.fuser.state_dict())


def test_weights_of_which_nothing_fits_are_an_error(model, tiny_bert, tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"model": {"conv1.weight": torch.ones(3)}}, path)
    with pytest.raises(InputError, match=r"other\.pth → backbone: none of 1 tensors fits"):
        checkpoint.load_swin_weights(model.segmenter.backbone, path)
    with pytest.raises(InputError, match="backbone: none of 0 tensors"):
        checkpoint.load_lavt_one(model, path, with_head=False)
    wide = build_model(arguments(swin_type="micro", prefusion_base_ch=8, ck_bert=tiny_bert))
    checkpoint.save(wide.fuser.state_dict(), path)
    with pytest.raises(InputError, match=r"the fuser in .*other\.pth does not fit: .*expected \(4, 1, 3, 3\)"):
        checkpoint.load_fuser(model.fuser, path)


def test_an_archive_that_expands_to_many_times_its_size_is_not_opened(tmp_path):
    plain, packed = str(tmp_path / "plain.pth"), str(tmp_path / "packed.pth")
    torch.save({"model": {"weight": torch.zeros(10**6)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert checkpoint.read(plain)
    with pytest.raises(InputError, match=r"packed.pth is a compressed archive that expands to 400\d{4} bytes"):
        checkpoint.read(packed)
