"""Weights: what is read, what is refused, and how it is written."""
import argparse
import logging
import os

import pytest
import torch
from conftest import arguments

from models import build_from_checkpoint, build_model
from utils import checkpoint
from utils.errors import InputError, UsageError


class Harmful:
    """Unpickling this would create a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


def swin_file(backbone: dict, path) -> str:
    """Dress up a backbone as Swin's ImageNet file: no fusion, but a head and masks."""
    weights = {key: tensor for key, tensor in backbone.items()
               if not any(part in key for part in ("fusion", "res_gate", "norm0", "norm3"))}
    weights |= {"norm.weight": torch.ones(256), "head.weight": torch.ones(1000, 256),
                "layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49)}
    torch.save({"model": weights}, path)
    return str(path)


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
