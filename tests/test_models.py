"""The networks and losses compute what the authors' implementation computes."""
from types import SimpleNamespace

import pytest
import torch
from conftest import README_WEIGHTS, arguments
from parity import checkpoint_keys

from benchmarks.reference import Case, golden, inputs
from bert import build_text_encoder
from models import INPUTS, Architecture, build_criterion, build_model
from models.fuser import UNetFuser
from models.lavt import LAVT
from models.swin import LanguageSwin

GOLDEN = golden()


@pytest.fixture(scope="module", params=list(GOLDEN))
def case(request) -> Case:
    """One published configuration."""
    return Case(GOLDEN[request.param], torch.device("cpu"), README_WEIGHTS)


def larger(deviations: dict[str, float], tolerance: float) -> dict[str, float]:
    """Those that are too large, or no numbers."""
    return {name: value for name, value in deviations.items() if not value <= tolerance}


def test_every_network_gives_the_published_figures(case):
    assert not larger(case.outputs(), 1e-4)


def test_losses_and_gradients_give_the_published_figures(case):
    losses = case.losses()
    assert losses.keys() == case.figures["losses"].keys()
    assert not larger(losses, 1e-4)
    assert not larger(case.gradients(), 3e-3)


def test_loss_terms_are_for_reading_and_the_total_is_the_loss(case):
    output = case.model(*(case.inputs[name] for name in INPUTS))
    loss, terms = build_criterion(case.args)(output, *(case.inputs[name] for name in ("vis", "ir", "target")))
    assert float(terms["total"]) == float(loss.detach())
    assert not any(term.requires_grad for term in terms.values())


def test_the_fuser_in_training_mode_gives_the_published_figures(case):
    assert case.fused_in_training() <= 1e-4


def test_the_state_dicts_have_the_released_keys_dtypes_and_shapes():
    model = build_model(arguments(swin_type="base", window12=True))
    networks = {"model": model.segmenter, "prefusion_model": model.fuser, "bert_model": model.text_encoder}
    for name, released in checkpoint_keys().items():
        ours = {key: [str(tensor.dtype).removeprefix("torch."), *tensor.shape]
                for key, tensor in networks[name].state_dict().items()}
        assert ours == released


def test_text_and_images_of_any_width_fit_together(tiny_bert):
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))
    batch = inputs(45, 67, vocab=20)
    output = model(*(batch[name] for name in INPUTS))
    assert output.fused.shape == (2, 3, 45, 67)
    assert output.logits.shape == (2, 2, 45, 67)


def test_padding_words_change_nothing(tiny_bert):
    torch.manual_seed(0)
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert)).eval()
    batch = inputs(64, 64, vocab=20)
    short = {name: batch[name][1:] for name in batch}
    cut = short | {name: short[name][:, :7] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        padded, unpadded = (model(*(b[name] for name in INPUTS))
                            for b in (short, cut))
    torch.testing.assert_close(padded.fused, unpadded.fused, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.logits, unpadded.logits, atol=1e-5, rtol=1e-4)


def test_the_segmentation_loss_reaches_fuser_and_text_encoder(tiny_bert):
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))
    batch = inputs(64, 64, vocab=20)
    output = model(*(batch[name] for name in INPUTS))
    _, terms = build_criterion(arguments(lambda_prefusion=0.0))(output, batch["vis"], batch["ir"], batch["target"])
    assert terms["total"] == terms["seg"]
    loss, _ = build_criterion(arguments(lambda_prefusion=0.0))(output, batch["vis"], batch["ir"], batch["target"])
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.fuser.named_parameters()
               if name.endswith("outc.weight"))
    assert model.text_encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_images_of_32_px_or_less_are_refused_with_the_reason(tiny_bert):
    model = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert))
    batch = inputs(32, 32, vocab=20)
    with pytest.raises(ValueError, match="single position, on which InstanceNorm"):
        model(*(batch[name] for name in INPUTS))


def test_random_weights_start_as_swin_does(tiny_bert):
    torch.manual_seed(0)
    backbone = build_model(arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert)).segmenter.backbone
    block = backbone.layers[2].blocks[1]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.attn.relative_position_bias_table):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not block.attn.qkv.bias.any() and not block.mlp.fc2.bias.any()
    assert bool((block.norm1.weight == 1).all()) and not block.norm1.bias.any()


def test_stochastic_depth_rises_linearly_to_three_tenths(tiny_bert):
    backbone = build_model(arguments(ck_bert=tiny_bert)).segmenter.backbone
    rates = [block.drop_path.drop_prob for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(12)])


def test_dice_and_bce_area_leave_out_a_class_that_a_sample_lacks():
    output = SimpleNamespace(fused=torch.zeros(1, 3, 40, 40), logits=torch.full((1, 2, 40, 40), -20.0))
    image, empty = torch.zeros(1, 3, 40, 40), torch.zeros(1, 40, 40, dtype=torch.long)
    for seg_loss in ("dice", "bce_area"):
        _, terms = build_criterion(arguments(seg_loss=seg_loss))(output, image, image, empty)
        assert float(terms["seg"]) == pytest.approx(0.0, abs=1e-5)


def test_the_window_of_ssim_can_be_chosen():
    """Against the definition, written out for one pixel whose window lies inside the image."""
    from models.losses import structural_similarity

    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 1, 5, 5, generator=generator, dtype=torch.float64)
    offsets = torch.arange(-2, 3, dtype=torch.float64)
    weight = torch.exp(-(offsets[:, None] ** 2 + offsets ** 2) / (2 * 0.8 ** 2))
    weight /= weight.sum()
    mean = [(weight * image).sum() for image in (one, other)]
    variance = [(weight * image ** 2).sum() - m ** 2 for image, m in zip((one, other), mean, strict=True)]
    covariance = (weight * one * other).sum() - mean[0] * mean[1]
    expected = ((2 * mean[0] * mean[1] + 0.01 ** 2) * (2 * covariance + 0.03 ** 2)
                / ((mean[0] ** 2 + mean[1] ** 2 + 0.01 ** 2) * (sum(variance) + 0.03 ** 2)))
    assert float(structural_similarity(one, other, size=5, sigma=0.8)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("changes", [
    {"ssim_window": 4}, {"ssim_window": 1}, {"ssim_sigma": 0.0}, {"ssim_edges": "mirror"}, {"seg_loss": "hinge"},
    {"w_grad": -1.0}, {"lambda_prefusion": float("nan")}])
def test_losses_that_cannot_be_computed_are_refused(changes):
    with pytest.raises(ValueError, match="must be|none of the segmentation losses"):
        build_criterion(arguments(**changes))


@pytest.mark.parametrize("mha", ["1-2-4", "a-b-c-d", "1-1-1-0", "3-3-3-3"])
def test_head_counts_that_cannot_be_are_refused(mha, tiny_bert):
    with pytest.raises(ValueError, match="heads"):
        build_model(arguments(swin_type="micro", mha=mha, ck_bert=tiny_bert))


@pytest.mark.parametrize(("window12", "name", "window"), [
    (False, "", 7), (True, "", 12), (False, "/weights/swin_base_patch4_window12_384_22k.pth", 12),
    (False, "/window12/swin_base_patch4_window7_224.pth", 7)])
def test_the_window_follows_the_flag_or_the_name_of_the_swin_file(window12, name, window, tiny_bert):
    args = arguments(swin_type="micro", window12=window12, pretrained_swin_weights=name, ck_bert=tiny_bert)
    model = build_model(args, pretrained=False)
    assert model.segmenter.backbone.layers[0].blocks[0].attn.window_size == (window, window)


def test_what_the_words_change_survives_autocast():
    """Pixels that attend to almost the same words differ by less than bfloat16 can hold beside their mean."""
    from models.pwam import SpatialImageLanguageAttention

    torch.manual_seed(0)
    attention = SpatialImageLanguageAttention(64, 128, 1)
    x, text, mask = torch.randn(2, 64, 400), 1 + 0.05 * torch.randn(2, 128, 20), torch.ones(2, 20)
    with torch.no_grad():
        exact = attention(x, text, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attention(x, text, mask)
            coarse = attention.attend(x.bfloat16(), text.bfloat16(), mask.bfloat16())
    assert (mixed - exact).norm() < 0.01 * exact.norm() < (coarse.float() - exact).norm()


def test_a_seed_gives_each_network_the_weights_that_it_always_gave(tiny_bert):
    """The text encoder is built first, then Swin, the fuser and LAVT's decoder."""
    args = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=tiny_bert)
    torch.manual_seed(0)
    model = build_model(args)
    torch.manual_seed(0)
    build_text_encoder(tiny_bert)
    architecture = Architecture.from_flags(args)
    backbone = LanguageSwin(architecture.size, architecture.window, 128)
    fuser = UNetFuser(4, 128)
    segmenter = LAVT(backbone, architecture.size.embed_dim)
    for network, expected in ((model.fuser, fuser), (model.segmenter, segmenter)):
        for (name, tensor), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name


def test_every_mask_of_attention_suits_the_fused_kernel_of_a_gpu(monkeypatch):
    strides, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*tensors, attn_mask=None, **options):
        strides.append(attn_mask.stride(-1))
        return attend(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    case = Case(next(iter(GOLDEN.values())), torch.device("cpu"), README_WEIGHTS)
    case.model(*(case.inputs[name] for name in INPUTS))
    assert len(strides) == 20 and set(strides) == {1}  # PyTorch computes others in many steps, as a product, a sum, …
