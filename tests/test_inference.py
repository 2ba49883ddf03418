"""What makes evaluation faster changes none of its results."""
import copy

import pytest
import torch
from conftest import arguments

from benchmarks.reference import fill_, inputs
from evaluation.inference import Inference, open_checkpoint
from models import INPUTS, build_model
from models.fast import prepare_for_inference
from models.fast.winograd import WinogradConv
from utils.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_bert):
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert)).eval()
    for network in (model.text_encoder, model.fuser, model.segmenter):
        fill_(network)
    return model


def batch(height: int, width: int, size: int = 2) -> list[torch.Tensor]:
    made = inputs(height, width, size, vocab=20)
    return [made[name] for name in INPUTS]


@torch.inference_mode()
def test_a_prepared_model_gives_the_same_at_one_size_after_another(model):
    prepared = prepare_for_inference(copy.deepcopy(model), CPU)
    for images in (batch(96, 64), batch(64, 96), batch(96, 64, 1), batch(45, 67, 3), batch(96, 64)):
        for ours, plain in zip(prepared(*images), model(*images), strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-5 * float(plain.abs().max()), rtol=0)


@torch.inference_mode()
def test_a_model_prepared_for_a_gpu_has_nothing_made_for_a_cpu(model):
    """Shown without moving it there: what is replaced depends on the device that is named."""
    prepared = copy.deepcopy(model)
    prepared.to = lambda *_, **__: prepared
    prepare_for_inference(prepared, torch.device("cuda"))
    kinds = {type(part).__name__ for part in prepared.modules()}
    assert not kinds & {"PointwiseLinear", "WinogradConv"}


def test_batch_norm_is_gone_from_a_prepared_model(model):
    prepared = prepare_for_inference(copy.deepcopy(model), CPU)
    left = [part for part in prepared.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert not left


@torch.inference_mode()
def test_a_compiled_model_gives_the_same_from_one_graph_for_all_batches(model, monkeypatch):
    """With the compiler's own stand-in for code generation, which takes minutes."""
    options, compile_ = [], torch.nn.Module.compile

    def compile_eagerly(self, **given):
        options.append(given)
        compile_(self, backend="eager", fullgraph=True, dynamic=given["dynamic"])

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    torch.compiler.reset()
    compiled = Inference(prepare_for_inference(copy.deepcopy(model), CPU, compiled=True), True, compile_mode="default")
    plain = Inference(model, flip=True)
    assert options == [{"mode": "default", "dynamic": False}]
    torch._dynamo.utils.counters.clear()
    for images in (batch(64, 64, 3), batch(64, 64, 3), batch(64, 64, 1), batch(64, 64, 2)):
        for ours, expected in zip(compiled(*images), plain(*images), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.inference_mode()
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 24, 24), (5, 8, 28), (2, 13, 7), (1, 1, 2), (1, 90, 111)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_winograd_convolution_is_a_convolution(batch, height, width, bias):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(48, 32, 3, padding=1, bias=bias)
    x = torch.randn(batch, 48, height, width)
    exact = copy.deepcopy(conv).double()(x.double())
    for images in (x, x.to(memory_format=torch.channels_last)):
        ours = WinogradConv(conv)(images)
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, atol=1e-5 * float(exact.abs().max()), rtol=0)


def test_a_file_of_another_kind_is_refused_before_its_bert_is_looked_for(tmp_path):
    torch.save({"weight": torch.ones(2), "bias": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth is no RIS-FUSION checkpoint: it has no 'model', but weight, bias"):
        open_checkpoint(str(tmp_path / "other.pth"), CPU)
