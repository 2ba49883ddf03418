"""Exports: a folder for the hub and a graph for other runtimes give what their checkpoint gives; mistakes say so."""
import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import in_process
from PIL import Image
from safetensors.torch import load_file, save_file

from predictor import Predictor
from utils import checkpoint, hub
from utils.errors import InputError, UsageError

SENTENCE = "the red disc"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of the trained model."""
    folder = tmp_path_factory.mktemp("export") / "model"
    in_process("export.py", "--ckpt", trained / "model_best_lavt.pth", "--to", folder)
    return folder


@pytest.fixture(scope="module")
def pair():
    return np.random.default_rng(0).integers(0, 256, (2, 48, 60, 3), dtype=np.uint8)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture
def released(trained, tmp_path):
    """The checkpoint as the authors publish theirs: without vocabulary and configuration of BERT."""
    content = torch.load(trained / "model_best_lavt.pth", weights_only=True)
    del content["bert"], content["args"]["bert_tokenizer"], content["args"]["ck_bert"]
    path = tmp_path / "published" / hub.CHECKPOINT
    path.parent.mkdir()
    torch.save(content, path)
    return path


def same(a, b) -> bool:
    return all(np.array_equal(*parts) for parts in zip(a, b, strict=True))


def test_a_folder_gives_what_its_checkpoint_gives(trained, exported, pair):
    expected = Predictor.from_checkpoint(trained / "model_best_lavt.pth", "cpu")(*pair, SENTENCE)
    assert same(Predictor.from_checkpoint(exported, "cpu")(*pair, SENTENCE), expected)
    assert same(Predictor.from_pretrained(exported, "cpu")(*pair, SENTENCE), expected)


def test_the_scripts_take_a_folder(scenes, exported, pair, tmp_path):
    result = in_process("test.py", "--ckpt", exported, "--test_parquet", scenes / "mm_ris_test.parquet", "--limit", 2,
                        "--out_dir", tmp_path / "test", "-j", 0, "--device", "cpu", "--save", "none")
    assert "mIoU" in result.stdout
    for name, pixels in zip("vi", pair, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    in_process("predict.py", "--ckpt", exported, "--visible", tmp_path / "v.png", "--infrared", tmp_path / "i.png",
               "--text", SENTENCE, "--out", tmp_path / "out", "--device", "cpu")
    assert any((tmp_path / "out").glob("*-fused.png"))


def test_a_folder_names_networks_and_tells_no_paths(trained, exported):
    tensors = load_file(exported / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"fuser", "segmenter", "text_encoder"}
    config = json.loads((exported / "config.json").read_text())
    assert config["architecture"]["swin_type"] == "micro" and config["args"]["img_size"] == 64
    for name in ("config.json", "README.md"):
        assert str(trained) not in (exported / name).read_text()
        assert "model.safetensors" in os.listdir(exported)
    assert (exported / "model.safetensors").stat().st_mode == (exported / "config.json").stat().st_mode


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_take_half_the_room_and_nearly_the_same_weights(dtype, exported, tmp_path):
    result = in_process("export.py", "--ckpt", exported, "--to", tmp_path / "half", "--dtype", dtype)
    assert f"stored in {dtype}" in result.stdout and "mIoU" in result.stdout
    whole, half = (folder / "model.safetensors" for folder in (exported, tmp_path / "half"))
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    ours, theirs = (checkpoint.read(str(path.parent)) for path in (whole, half))
    for part in ("model", "prefusion_model", "bert_model"):
        for name, tensor in ours[part].items():
            assert theirs[part][name].dtype == tensor.dtype
            torch.testing.assert_close(theirs[part][name], tensor, rtol=2 ** -8, atol=1e-6)
            assert tensor.ndim > 1 or torch.equal(theirs[part][name], tensor)


def test_a_weight_beyond_float16_is_refused(copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    tensors["fuser.net.y_inc.block.0.weight"][0, 0, 0, 0] = 1e6
    save_file(tensors, copy / "model.safetensors")
    result = in_process("export.py", "--ckpt", copy, "--to", tmp_path / "half", "--dtype", "float16", ok=False)
    assert result.returncode == 1 and "beyond the range of float16" in result.stderr
    assert not (tmp_path / "half").exists() and not list(tmp_path.glob(".writing*"))


def test_the_card_tells_what_is_known(exported, tmp_path):
    metrics = {"mIoU": 61.234, "num_samples": 7, "intervals_95": {"mIoU": [50, 70.5]},
               "settings": {"test_parquet": "/home/me/mm_ris_test.parquet", "img_size": 64},
               "fusion_metrics": {"fused": {"Qabf": 0.5}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    in_process("export.py", "--ckpt", exported, "--to", tmp_path / "out", "--metrics", tmp_path / "metrics.json",
               "--license", "cc-by-nc-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n") and "/home/me" not in card
    for words in ("| mIoU | 61.23 [50.00, 70.50] |", "`mm_ris_test.parquet`, 7 samples", "| Qabf | 0.500 |",
                  "--lr_seg 0.001", "after epoch", "2509.12710"):
        assert words in card
    assert "No licence has been stated" in (exported / "README.md").read_text()


def test_an_export_replaces_only_an_export_and_only_if_asked(exported, copy, tmp_path):
    (copy / "vocab.txt").write_text("")
    again = ("export.py", "--ckpt", exported, "--to", copy)
    result = in_process(*again, ok=False)
    assert result.returncode == 2 and "is there already; choose another place, or --overwrite" in result.stderr
    in_process(*again, "--overwrite")
    assert (copy / "vocab.txt").read_text() and sorted(os.listdir(tmp_path)) == ["copy"]
    (copy / "thesis.tex").write_text("years of work")
    result = in_process(*again, "--overwrite", ok=False)
    assert result.returncode == 2 and "thesis.tex" in result.stderr and (copy / "thesis.tex").exists()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("model.safetensors", b"no tensors", "it is damaged or no safetensors file"),
    ("config.json", b"{", "config.json cannot be read"),
    ("config.json", b'{"model_type": "bert"}', "another kind of model .'bert'."),
    ("config.json", b'{"model_type": "ris_fusion", "format_version": 2}', "format version 2"),
    ("vocab.txt", b"\xff", "the vocabulary cannot be read"),
    ("vocab.txt", b"[PAD]\n", "the vocabulary lacks"),
])
def test_a_damaged_folder_is_named(name, content, message, copy):
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Predictor.from_pretrained(copy, "cpu")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"has no model\.safetensors"):
        checkpoint.read(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor model_best_lavt\.pth"):
        Predictor.from_pretrained(tmp_path)


def test_a_foreign_tensor_is_named(copy):
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {"decoder.weight": torch.ones(2)}, copy / "model.safetensors")
    with pytest.raises(InputError, match="'decoder.weight' is of none of the networks"):
        checkpoint.read(str(copy))


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """Repositories by name, which are local folders; what was asked for is noted."""
    import huggingface_hub

    repositories, asked = {}, []

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append((repo, revision))
        cache = tmp_path / "cache" / repo
        names = os.listdir(repositories[repo])
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            cache.mkdir(parents=True, exist_ok=True)
            shutil.copy(repositories[repo] / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repositories, asked


def test_a_repository_of_ours_needs_nothing_else(exported, pair, fake_hub):
    repositories, asked = fake_hub
    repositories["me/night"] = exported
    found = Predictor.from_pretrained("me/night", "cpu", revision="v1")
    assert same(found(*pair, SENTENCE), Predictor.from_checkpoint(exported, "cpu")(*pair, SENTENCE))
    assert asked == [("me/night", "v1")]


def test_the_published_repository_comes_with_bert_of_another(released, exported, tiny_bert, pair, fake_hub, monkeypatch,
                                                              tmp_path):
    repositories, asked = fake_hub
    repositories |= {"ronniejiangC/RIS-FUSION": released.parent, hub.BERT: type(exported)(tiny_bert)}
    monkeypatch.chdir(tmp_path)  # where there is no folder of BERT
    found = Predictor.from_pretrained("ronniejiangC/RIS-FUSION", "cpu", img_size=64)
    assert same(found(*pair, SENTENCE), Predictor.from_checkpoint(exported, "cpu")(*pair, SENTENCE))
    assert [repo for repo, _ in asked] == ["ronniejiangC/RIS-FUSION", hub.BERT]
    assert sorted(os.listdir(tmp_path / "cache" / hub.BERT)) == ["config.json", "vocab.txt"]  # not the weights


@pytest.mark.parametrize(("name", "message"), [
    ("me/night", "can be neither downloaded from the Hugging Face hub nor found in its cache .*hf download me/night"),
    ("no/such/folder", "there is neither a folder nor a repository 'no/such/folder'"), ("", "neither a folder")])
def test_without_a_connection_one_sentence_says_so(name, message, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message) as raised:
        Predictor.from_pretrained(name)
    assert "\n" not in str(raised.value)


def test_without_the_packages_of_onnx_one_sentence_names_them(exported, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else find(name, *more))
    result = in_process("export.py", "--ckpt", exported, "--to", tmp_path / "out", "--format", "onnx", ok=False)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "pip install -r requirements-export.txt" in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--format", "onnx", "--dtype", "float16"], "--dtype: onnx is written in float32"),
    (["--check_parquet", "export.py"], "--check_parquet: only a graph is checked"),
    (["--metrics", "absent.json"], "--metrics: there is no"),
    (["--metrics", "pyproject.toml"], "--metrics: pyproject.toml is no metrics.json")])
def test_flags_that_do_not_fit_are_refused(flags, message, exported, tmp_path):
    result = in_process("export.py", "--ckpt", exported, "--to", tmp_path / "out", *flags, ok=False)
    assert result.returncode in (1, 2) and message in result.stderr and not (tmp_path / "out").exists()


def test_a_graph_gives_what_the_model_gives(exported, scenes, pair, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages of requirements-export.txt")
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="needs the packages of requirements-export.txt")
    result = in_process("export.py", "--ckpt", exported, "--to", tmp_path / "onnx", "--format", "onnx",
                        "--check_parquet", scenes / "mm_ris_test.parquet")
    assert "opset 18" in result.stdout and "in  visible (batch, 3, 64, 64)" in result.stdout
    assert "the batch is free; images are 64 × 64 px, as the checkpoint or --img_size says" in result.stdout
    assert result.stdout.count("differs from PyTorch by") == 2 and "ms, PyTorch as predict.py runs it" in result.stdout
    assert sorted(os.listdir(tmp_path / "onnx")) == ["README.md", "config.json", "model.onnx", "vocab.txt"]
    # As a program without this code would: one pair, pixels to numbers in [0, 1].
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    square = np.stack([np.asarray(Image.fromarray(image).resize((64, 64))) for image in pair])
    images = square.transpose(0, 3, 1, 2)[:, None].astype(np.float32) / 255
    predictor = Predictor.from_checkpoint(exported, "cpu")
    ids, mask = (tensor.numpy() for tensor in predictor.tokenizer([SENTENCE]))
    fused, logits = session.run(None, {"visible": images[0], "infrared": images[1], "input_ids": ids,
                                       "attention_mask": mask})
    several = session.run(None, {name: np.repeat(values, 5, axis=0) for name, values in (
        ("visible", images[0]), ("infrared", images[1]), ("input_ids", ids), ("attention_mask", mask))})
    assert all(np.allclose(many, one.repeat(5, axis=0), atol=1e-5) for many, one in
               zip(several, (fused, logits), strict=True))
    expected = predictor(*square, SENTENCE)
    assert np.abs(fused[0].transpose(1, 2, 0) * 255 - expected.fused).max() < 1
    assert ((logits[0].argmax(0) == 1) == expected.mask).mean() > 0.999


def test_a_graph_that_differs_is_refused(exported):
    from evaluation.inference import load_checkpoint
    from exporting.graph import ImagesIn01, compare, random_batch

    loaded = load_checkpoint(str(exported))
    module, batch = ImagesIn01(loaded.model), random_batch(loaded, 2)
    with torch.no_grad():
        fused, logits = module(**batch)
    assert "IoU of the masks 1.00000" in compare(module, lambda _: (fused, logits), [batch])
    with pytest.raises(InputError, match="fused of the exported model differs by 0.0"):
        compare(module, lambda _: (fused + 0.01, logits), [batch])
    with pytest.raises(InputError, match="masks of the exported model|logits of the exported model"):
        compare(module, lambda _: (fused, -logits), [batch])
