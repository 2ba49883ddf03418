"""--prefusion_model: fusion methods without parameters, to compare the learned fusion with."""
import json

import numpy as np
import pytest
import torch
from conftest import arguments, epochs_of, in_process, train

from benchmarks.reference import inputs
from models import build_model
from predictor import Predictor
from utils import checkpoint
from utils.color import destandardise, luma, standardise

RULES = ("average", "maximum", "visible", "infrared")
SHORT = ("--epochs", 1, "--eval_vis_dir", "")


def chroma(rgb):
    return rgb - luma(rgb)


@pytest.mark.parametrize("rule", RULES)
def test_each_method_gives_the_luma_and_the_colour_that_it_says(rule, tiny_bert):
    model = build_model(arguments(swin_type="micro", ck_bert=tiny_bert, prefusion_model=rule)).eval()
    assert not model.fuser.state_dict() and not list(model.fuser.parameters())
    batch = inputs(48, 64, vocab=20)
    vis, ir = (standardise(0.3 + 0.4 * destandardise(batch[name])) for name in ("vis", "ir"))  # nothing is clamped
    with torch.no_grad():
        fused = destandardise(model(vis, ir, batch["input_ids"], batch["attention_mask"]).fused)
    visible, infrared = destandardise(vis), destandardise(ir)
    expected = {"average": (luma(visible) + luma(infrared)) / 2, "maximum": luma(visible).maximum(luma(infrared)),
                "visible": luma(visible), "infrared": luma(infrared)}[rule]
    assert torch.allclose(luma(fused), expected, atol=1e-5)
    assert torch.allclose(chroma(fused), torch.zeros(3, 48, 64) if rule == "infrared" else chroma(visible), atol=1e-5)


@pytest.fixture(scope="module")
def averaging(scenes, tmp_path_factory):
    """A run with the most of what handles parameters: moving average, clipping, gradient accumulation, 16 bits."""
    folder = tmp_path_factory.mktemp("average")
    train(scenes, folder, "--prefusion_model", "average", "--model-ema-decay", 0.9, "--grad_clip", 1, "--amp",
          "--grad-accum-steps", 2, "--grad-checkpointing", "--eval_vis_dir", "")
    return folder


def test_training_without_a_fuser_logs_the_fusion_terms_and_stores_no_weights_of_one(averaging):
    content = checkpoint.read(str(averaging / "model_best_lavt.pth"))
    assert content["prefusion_model"] == {} and content["args"]["prefusion_model"] == "average"
    for entry in epochs_of(averaging):
        assert entry["fusion"] > 0 and entry["ssim_vis"] > 0
    assert json.loads((averaging / "run.json").read_text())["million_parameters"]["fuser"] == 0


def test_a_run_without_a_fuser_is_resumed_to_the_same_weights(averaging, scenes, tmp_path):
    flags = ("--prefusion_model", "average", "--model-ema-decay", 0.9, "--grad_clip", 1, "--amp",
             "--grad-accum-steps", 2, "--grad-checkpointing", "--eval_vis_dir", "", "--keep", 2)
    train(scenes, tmp_path, *flags)
    (tmp_path / "last.pth").unlink()
    train(scenes, tmp_path, *flags, "--resume", tmp_path / "epoch_000.pth")
    one, other = (checkpoint.read(str(folder / "last.pth"))["model"] for folder in (averaging, tmp_path))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("rule", RULES)
def test_evaluation_and_prediction_read_the_method_from_the_checkpoint(rule, scenes, tmp_path):
    train(scenes, tmp_path, *SHORT, "--prefusion_model", rule)
    best = tmp_path / "model_best_lavt.pth"
    in_process("test.py", "--ckpt", best, "--test_parquet", scenes / "mm_ris_test.parquet", "--out_dir",
               tmp_path / "test", "-j", 0, "--device", "cpu", "--fusion_metrics", "--text_ablation", "--tta", "flip")
    results = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert results["text_ablation"]["empty"]["change_inside"] == 0
    measured = results["fusion_metrics"]
    if rule in ("average", "maximum"):  # but for the resampling to img_size and JPEG
        assert measured["fused"]["CC"] == pytest.approx(measured[rule]["CC"], abs=0.02)
    predictor = Predictor.from_checkpoint(best, "cpu")
    visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    prediction = predictor(visible, infrared, "the red circle")
    if rule == "visible":
        assert np.array_equal(prediction.fused, visible)
    picture = tmp_path / "test" / "contact_sheet.png"
    result = in_process("predict.py", "--ckpt", best, "--visible", picture, "--infrared", picture, "--text",
                        "the red circle", "--out", tmp_path / "out", "--device", "cpu")
    assert f"fusion method {rule}" in result.stdout


@pytest.mark.parametrize("flags, message, code", [
    (["--train_fuser_only"], "--train_fuser_only: --prefusion_model average has no parameters to train", 2),
    (["--ck_prefusion", "x.pth"], "--ck_prefusion: --prefusion_model average has no parameters to start from", 2),
    (["--fuser_text", "none"], "--fuser_text: --prefusion_model average reads no sentence", 2),
    (["--detach_fused"], "--detach_fused: --prefusion_model average has no parameters that a gradient could reach", 2)])
def test_what_needs_a_fuser_is_refused_without_one(scenes, tmp_path, flags, message, code):
    result = train(scenes, tmp_path, "--prefusion_model", "average", *flags, ok=False)
    assert result.returncode == code and message in result.stderr


@pytest.mark.parametrize("flag", ["--init_from", "--resume", "--ck_prefusion"])
def test_a_checkpoint_of_another_method_is_refused(averaging, trained, scenes, tmp_path, flag):
    result = train(scenes, tmp_path, flag, averaging / "last.pth", ok=False)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    if flag == "--ck_prefusion":
        assert "has no weights of a fuser" in result.stderr
        return
    assert f"{flag}: {averaging / 'last.pth'} was trained with prefusion_model average, and this" in result.stderr
    result = train(scenes, tmp_path, "--prefusion_model", "maximum", flag, trained / "last.pth", ok=False)
    assert "trained with prefusion_model unet_fuser, and this run has maximum" in result.stderr


def test_a_new_run_starts_from_a_checkpoint_of_the_same_method(averaging, scenes, tmp_path):
    train(scenes, tmp_path, *SHORT, "--prefusion_model", "average", "--init_from", averaging / "model_best_lavt.pth",
          "--lr_seg", 0)
    start, end = (checkpoint.read(str(path))["model"] for path in (averaging / "model_best_lavt.pth",
                                                                   tmp_path / "last.pth"))
    assert torch.equal(start["classifier.conv1_1.weight"], end["classifier.conv1_1.weight"])
