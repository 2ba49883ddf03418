"""What training ablates: the fuser without the sentence, and without the gradient of the segmentation loss."""
import copy

import numpy as np
import pytest
import torch
from conftest import arguments, in_process, train
from evaluations import evaluate, read_metrics, read_samples

from bert import Tokenizer
from models import build_criterion, build_model
from predictor import Predictor
from utils import checkpoint


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return build_model(arguments(ck_bert=tiny_bert, swin_type="micro", prefusion_base_ch=4)).eval()


@pytest.fixture(scope="module")
def blind(scenes, tmp_path_factory):
    """A run whose fuser reads no sentence and gets no gradient of the segmentation loss, with an average of weights."""
    folder = tmp_path_factory.mktemp("blind")
    train(scenes, folder, "--fuser_text", "none", "--detach_fused", "--model-ema-decay", 0.5, "--epochs", 1)
    return folder


def batch(tiny_bert, *sentences):
    torch.manual_seed(1)
    return *torch.randn(2, len(sentences), 3, 64, 64), *Tokenizer(tiny_bert)(list(sentences))


def test_the_fuser_can_read_an_empty_sentence_while_the_segmenter_reads_the_true_one(model, tiny_bert):
    without = copy.deepcopy(model)
    without.fix_fuser_sentence(*Tokenizer(tiny_bert)([""]))
    assert without.state_dict().keys() == model.state_dict().keys()
    vis, ir, ids, mask = batch(tiny_bert, "the red disc", "the square on the left")
    empty = batch(tiny_bert, "", "")
    with torch.no_grad():
        fused, logits = without(vis, ir, ids, mask)
        assert torch.allclose(fused, model(*empty).fused, atol=1e-5)
        assert not torch.allclose(fused, model(vis, ir, ids, mask).fused, atol=1e-5)
        text = model.text_encoder(ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(logits, model.segmenter(fused, text, mask), atol=1e-5)
    without(vis, ir, ids, mask).fused.sum().backward()
    words = without.text_encoder.get_input_embeddings().weight.grad.norm(dim=1).nonzero().flatten()
    assert words.tolist() == sorted(Tokenizer(tiny_bert)([""])[0][0, :2].tolist())  # [CLS] and [SEP] alone


def test_a_detached_fused_image_keeps_the_gradient_of_the_segmentation_from_the_fuser(model, tiny_bert):
    inputs = batch(tiny_bert, "the red disc")
    expected = model(*inputs)
    expected.logits.sum().backward()
    assert all(p.grad.norm() > 0 for p in model.fuser.net.outc.parameters())
    model.zero_grad()
    model.detach_fused = True
    output = model(*inputs)
    assert torch.equal(output.fused, expected.fused) and torch.equal(output.logits, expected.logits)
    output.logits.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.fuser.parameters())
    assert model.segmenter.classifier.conv1_1.weight.grad.norm() > 0
    build_criterion(arguments())(output, *inputs[:2], torch.ones(1, 64, 64, dtype=torch.long))[0].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # which several processes need


def test_evaluation_reads_from_the_checkpoint_what_the_fuser_read(blind, scenes, tmp_path):
    stored = checkpoint.read(str(blind / "last.pth"))["args"]
    assert (stored["fuser_text"], stored["detach_fused"]) == ("none", True)
    evaluate(blind, scenes / "mm_ris_test.parquet", tmp_path, "--text_ablation", "--save", "none")
    metrics = read_metrics(tmp_path)
    assert metrics["text_ablation"]["swapped"]["change_inside"] == 0
    assert metrics["text_contrast"]["own_larger"] is None  # 0 % would say that the other sentence gives more contrast
    samples = read_samples(tmp_path)
    for column, name in (("contrast", "true"), ("contrast_swapped", "swapped"), ("contrast_empty", "empty")):
        of_samples = [float(sample[column]) for sample in samples if sample[column]]
        assert np.mean(of_samples) == pytest.approx(metrics["text_contrast"][name], abs=1e-4)
    swapped = [float(sample["iou_swapped"]) for sample in samples]
    assert 100 * np.mean(swapped) == pytest.approx(metrics["text_ablation"]["swapped"]["mIoU"], abs=1e-3)
    assert {sample["change_inside"] for sample in samples} == {"0.000000"}
    predictor = Predictor.from_checkpoint(blind / "last.pth", "cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), np.uint8)
    one, other = (predictor(*pictures, text) for text in ("the red disc", "the square on the left"))
    assert np.array_equal(one.fused, other.fused)
    assert not np.array_equal(one.probability, other.probability)


def test_validation_alone_reads_it_there_too(blind, scenes):
    """Not from its own command line, whose default is the sentence."""
    log = (blind / "log.jsonl").read_text()
    result = in_process(
        "train_with_lavt.py", "--eval_only", "--resume", blind / "last.pth", "--val_parquet",
        scenes / "mm_ris_val.parquet", "--swin_type", "micro", "--prefusion_base_ch", 4, "--img_size", 64, "-b", 4,
        "-j", 0, "--device", "cpu", "--pretrained_swin_weights", "", "--fuser_text", "sentence")
    found = dict(line.split()[:2] for line in result.stdout.splitlines() if line.startswith(("mIoU", "oIoU")))
    assert found and all(f'"{name}": {float(value):.1f}'[:-1] in log for name, value in found.items())


def test_the_fuser_alone_can_be_trained_without_the_sentence(scenes, tmp_path):
    train(scenes, tmp_path, "--train_fuser_only", "--fuser_text", "none", "--epochs", 1, "--eval_vis_dir", "")
    assert checkpoint.read(str(tmp_path / "last.pth"))["args"]["fuser_text"] == "none"
