"""What is rearranged for speed computes what the same networks compute in the straightforward way."""
import copy

import pytest
import torch
from parity import fill_, inputs
from test_models import arguments

from benchmarks.straightforward import straightforwardly
from models import build_model
from models.fuser import PixelWordAttention
from models.pwam import PWAM
from models.swin import SwinBlock
from models.winograd import WinogradConv


def passes(module, *inputs):
    """The output, and the gradients of the first input and of the parameters by name, for a loss that has one each."""
    x = inputs[0].clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    output = module(x, *inputs[1:])
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return output.detach(), {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def assert_same_as_straightforward(module, *inputs):
    """In float64, whose rounding hides nothing."""
    output, gradients = passes(module, *inputs)
    with straightforwardly():
        plain, plain_gradients = passes(module, *inputs)
    torch.testing.assert_close(output, plain, atol=1e-10, rtol=1e-10)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-9, rtol=1e-9, msg=lambda said, of=name:
                                   f"gradient of {of}: {said}")


# Maps of whole windows; with padding on one side, on both, as they shrink; less than one window; a single row.
@pytest.mark.parametrize(("height", "width"), [(24, 36), (24, 30), (30, 15), (5, 7), (1, 13)])
@pytest.mark.parametrize("shift", [0, 6])
def test_attention_in_windows_and_its_gradients(height, width, shift):
    torch.manual_seed(0)
    block = SwinBlock(dim=12, num_heads=3, window=12, shift=shift, drop_path=0.0).double()
    torch.nn.init.normal_(block.attn.qkv.bias)  # padding is projected to it
    assert_same_as_straightforward(block, torch.randn(2, height * width, 12, dtype=torch.double), height, width)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fusers_attention_to_words_and_its_gradients(layout):
    torch.manual_seed(0)
    mask = (torch.arange(20) < torch.tensor([[20], [7]])).long()
    x = torch.randn(2, 12, 6, 10, dtype=torch.double).to(memory_format=layout)
    tokens = torch.randn(2, 20, 256, dtype=torch.double)
    assert_same_as_straightforward(PixelWordAttention(12).double(), x, tokens, mask)


@pytest.mark.parametrize("heads", [1, 4])
def test_pwams_attention_to_words_and_its_gradients(heads):
    torch.manual_seed(0)
    pwam = PWAM(dim=16, text_dim=24, num_heads=heads).double()
    attention = pwam.image_lang_att

    def attend(*inputs):
        return attention._attend(*inputs)  # looked up in each call, as it is replaced; forward would go to float32

    attention.forward = attend
    mask = (torch.arange(20) < torch.tensor([[20], [7]])).double()
    x, text = torch.randn(2, 15, 16, dtype=torch.double), torch.randn(2, 20, 24, dtype=torch.double)
    assert_same_as_straightforward(pwam, x, text, mask)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 132), (45, 67)])
def test_the_whole_model(height, width, tiny_bert):
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert)).eval()
    for network in (model.text_encoder, model.fuser, model.segmenter):
        fill_(network)
    batch = inputs(height, width, 3, vocab=20)
    images_and_words = [batch[name] for name in ("vis", "ir", "input_ids", "attention_mask")]
    output = model(*images_and_words)
    with straightforwardly():
        plain = model(*images_and_words)
    for ours, theirs in zip(output, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 24, 24), (5, 8, 28), (2, 13, 7), (1, 1, 2), (1, 90, 111)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_winograd_convolution(batch, height, width, bias):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(48, 32, 3, padding=1, bias=bias)
    x = torch.randn(batch, 48, height, width)
    exact = copy.deepcopy(conv).double()(x.double())
    for images in (x, x.to(memory_format=torch.channels_last)):
        ours = WinogradConv(conv)(images)
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, atol=1e-5 * float(exact.abs().max()), rtol=0)
