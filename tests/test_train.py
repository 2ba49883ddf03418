"""train_with_lavt.py, run as a researcher runs it."""
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import epochs_of, script, train, training
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import checkpoint
from utils.errors import run

TERMS = ["ssim_vis", "ssim_ir", "mse_vis", "mse_ir", "sobel_vis", "sobel_ir", "grad", "fusion", "seg", "total"]
README_RECIPE = {
    "train_parquet": "./data/mm_ris_train.parquet", "val_parquet": "./data/mm_ris_val.parquet",
    "prefusion_model": "unet_fuser", "prefusion_base_ch": 32, "epochs": 10, "batch_size": 16, "workers": 16,
    "img_size": 480, "swin_type": "base",
    "pretrained_swin_weights": "./pretrained_weights/swin_base_patch4_window12_384_22k.pth",
    "bert_tokenizer": "./bert/pretrained_weights/bert-base-uncased",
    "ck_bert": "./bert/pretrained_weights/bert-base-uncased",
    "init_from_lavt_one": "./pretrained_weights/lavt_one_8_cards_ImgNet22KPre_swin-base-window12_refcoco+_adamw_"
                          "b32lr0.00005wd1e-2_E40.pth",
    "lr_seg": 5e-5, "wd_seg": 1e-2, "lr_pf": 1e-4, "wd_pf": 1e-2, "lambda_prefusion": 3.0, "w_sobel_vis": 0.0,
    "w_sobel_ir": 1.0, "w_grad": 1.0, "w_ssim_vis": 0.5, "w_ssim_ir": 0.0, "w_mse_vis": 0.5, "w_mse_ir": 2.0,
    "eval_vis_dir": "./eval_vis", "output_dir": "./ckpts/risfusion", "model_id": "lavt"}


def test_a_plain_run_is_the_published_recipe():
    from train_with_lavt import build_parser

    defaults = vars(build_parser().parse_args([]))
    assert {name: defaults[name] for name in README_RECIPE} == README_RECIPE


def test_the_names_of_flags_may_be_spelt_with_hyphens_or_underscores():
    """The published command lines mix both."""
    from train_with_lavt import build_parser

    args = build_parser().parse_args(
        ["--output_dir", "out", "--img-size=96", "--model_ema_decay", "0.5", "--channels_last", "--model_id=a--b_c"])
    assert (args.output_dir, args.img_size, args.model_ema_decay, args.channels_last, args.model_id) == (
        "out", 96, 0.5, True, "a--b_c")


def test_what_the_former_launcher_passes_is_accepted():
    """`python -m torch.distributed.launch` gives each process its number as a flag too."""
    from train_with_lavt import build_parser

    for flags in (["--local-rank=1"], ["--local_rank", "1"]):
        assert not hasattr(build_parser().parse_args(flags), "local_rank")


def test_a_window_of_ssim_may_be_as_large_as_the_images_and_larger_where_they_are_padded():
    from train_with_lavt import build_parser, contradictions

    def refused(*flags):
        args = build_parser().parse_args(["--init_from_lavt_one", "", "--img_size", "65", *flags])
        return [flag for flag, wrong, _ in contradictions(args) if wrong]

    assert not refused("--ssim_window", "65") and not refused("--ssim_window", "67", "--ssim_edges", "zero")
    assert refused("--ssim_window", "67") == ["ssim_window"]


def test_the_log_has_every_term_rate_and_metric_of_every_epoch(trained):
    epochs = epochs_of(trained)
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    for epoch in epochs:
        assert all(isinstance(epoch[name], float) for name in (
            *TERMS, "lr_seg", "lr_pf", "mIoU", "oIoU", "precision@0.5", "precision@0.9", "seconds",
            "samples_per_second"))
        assert epoch["total"] == pytest.approx(epoch["seg"] + 3 * epoch["fusion"], rel=1e-4)
    assert epochs[0]["lr_seg"] == 1e-3
    assert epochs[1]["lr_seg"] == pytest.approx(1e-3 * 0.5 ** 0.9)  # after half of all steps
    assert epochs[1]["total"] < epochs[0]["total"]


def test_what_is_printed_to_a_file_is_lines_of_text(trained):
    """A line for each epoch, and nothing of progress bars, which only a terminal can show."""
    printed = (trained / "stdout.txt").read_bytes().decode()
    assert [line.split(":")[0] for line in printed.split("\n") if line.startswith("epoch ")] == ["epoch 0", "epoch 1"]
    assert "\r" not in printed and "step/s" not in printed and "4 steps, 4 samples a step" in printed


def test_checkpoints_are_in_the_released_format(trained):
    last = torch.load(trained / "last.pth", weights_only=True)  # without any exception to safe loading
    best = torch.load(trained / "model_best_lavt.pth", weights_only=True)
    scores = [epoch["oIoU"] for epoch in epochs_of(trained)]
    assert last["epoch"] == 1
    assert best["epoch"] == scores.index(max(scores))
    for content in (last, best):
        assert content.keys() >= {"model", "prefusion_model", "bert_model", "epoch", "args"}
        assert type(content["args"]) is dict
        assert all(isinstance(value, (str, int, float, bool)) for value in content["args"].values())
        assert content["args"]["img_size"] == 64


def test_pictures_of_the_first_validation_samples_and_curves_are_left(trained):
    for picture in ("eval_vis/epoch_000.png", "eval_vis/epoch_001.png", "curves.png"):
        assert min(Image.open(trained / picture).size) > 300


def test_a_seed_gives_the_same_weights_with_and_without_workers(scenes, tmp_path):
    for name, workers, seed in (("a", 0, 5), ("b", 2, 5), ("c", 0, 6)):
        train(scenes, tmp_path / name, "--epochs", 1, "-j", workers, "--seed", seed, "--eval_vis_dir", "")
    a, b, c = (checkpoint.read(str(tmp_path / name / "last.pth"))["model"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("flags", [
    ["--amp", "--grad-accum-steps", 2, "--tf32"],
    ["--grad-checkpointing", "--channels-last", "--model-ema-decay", 0.5, "-b", 8]])
def test_it_trains_with_less_precision_and_less_memory(flags, trained, scenes, tmp_path):
    train(scenes, tmp_path, *flags, "--eval_vis_dir", "")
    first, second = epochs_of(tmp_path)
    assert second["total"] < first["total"] < 1.1 * epochs_of(trained)[0]["total"]
    assert second["skipped_steps"] == 0


def test_it_trains_compiled_from_one_graph(trained, scenes, tmp_path, monkeypatch):
    """Without code generation, which takes a C++ compiler minutes: what is traced is what would be compiled.

    One graph: nothing breaks it, and neither a later step nor the validation between two epochs compiles again.
    """
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda module: compile_module(module, backend="eager", fullgraph=True))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(scenes, tmp_path, "--torchcompile", "--eval_vis_dir", "")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert epochs_of(tmp_path)[1]["total"] == pytest.approx(epochs_of(trained)[1]["total"], rel=0.05)


def test_the_fuser_alone_needs_no_masks_and_can_start_a_joint_run(scenes, tmp_path):
    for name in ("train", "val"):
        table = pq.read_table(scenes / f"mm_ris_{name}.parquet")
        pq.write_table(table.drop_columns(["segmentation"]), tmp_path / f"{name}.parquet")
    folder = tmp_path / "fuser"
    data = ("--train_parquet", tmp_path / "train.parquet", "--val_parquet", tmp_path / "val.parquet")
    train(scenes, folder, *data, "--train_fuser_only", "--pretrained_swin_weights", "absent.pth")
    train(scenes, folder, *data, "--train_fuser_only", "--epochs", 3, "--resume", "auto")
    epochs = epochs_of(folder)
    assert epochs[2]["val_fusion"] < epochs[0]["val_fusion"] and "mIoU" not in epochs[0] and "seg" not in epochs[0]
    assert Image.open(folder / "curves.png").width > 300 and (folder / "eval_vis" / "epoch_002.png").exists()
    fuser = checkpoint.read(str(folder / "model_best_lavt.pth"))
    assert "model" not in fuser
    joint = train(scenes, tmp_path / "joint", "--epochs", 1, "--lr_pf", 0, "--wd_pf", 0, "--ck_prefusion",
                  folder / "model_best_lavt.pth", "--eval_vis_dir", "")
    assert "→ fuser: " in joint.stdout
    result = checkpoint.read(str(tmp_path / "joint" / "last.pth"))
    assert torch.equal(result["prefusion_model"]["net.outc.weight"], fuser["prefusion_model"]["net.outc.weight"])


def test_frozen_networks_keep_their_weights(trained, scenes, tmp_path):
    start = lavt_one(checkpoint.read(str(trained / "last.pth")), tmp_path)
    train(scenes, tmp_path, "--epochs", 1, "--init_from_lavt_one", start, "--freeze_bert", "--freeze_backbone",
          "--eval_vis_dir", "")
    tensors = checkpoint.read(start)["model"]
    end = checkpoint.read(str(tmp_path / "last.pth"))
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in end["model"].items() if key.startswith("backbone"))
    assert all(torch.equal(tensor, tensors[f"text_encoder.{key}"]) for key, tensor in end["bert_model"].items())


def test_tensorboard_and_run_json_tell_what_the_run_is(trained):
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags = set(board.Tags()["scalars"])
    assert tags >= {*(f"loss/{term}" for term in TERMS), "learning_rate/lr_seg", "learning_rate/lr_pf",
                    *(f"gradient_norm/{name}" for name in ("text_encoder", "fuser", "segmenter")), "validation/mIoU",
                    "validation/oIoU", "run/samples_per_second", "run/peak_memory_GiB", "run/skipped_steps"}
    assert len(board.Images("validation")) == 2
    run = json.loads((trained / "run.json").read_text())
    assert (run["device"].split()[0], run["precision"], run["effective_batch"]) == ("cpu", "float32", 4)
    assert (run["training_samples"], run["validation_samples"]) == (16, 6)
    assert run["million_parameters"].keys() == {"text_encoder", "fuser", "segmenter"}
    assert run["flags"]["lr_seg"] == 1e-3 and run["torch"] == torch.__version__
    assert run["git_commit"] is None or len(run["git_commit"].rstrip("+")) == 40


def test_a_zero_padded_ssim_can_be_trained(scenes, tmp_path):
    """The variant of the authors' public scripts; the weights stay as they start."""
    totals = []
    for flags in ([], ["--ssim_edges", "zero"], ["--ssim_window", 5], ["--ssim_sigma", 1]):
        folder = tmp_path / str(len(totals))
        train(scenes, folder, "--lr_seg", 0, "--lr_pf", 0, "--epochs", 1, "--seg_loss", "dice", *flags)
        totals.append(epochs_of(folder)[0]["ssim_vis"])
    assert len({round(total, 4) for total in totals}) == 4


def test_every_option_of_the_optimization_is_taken(scenes, tmp_path):
    result = train(scenes, tmp_path, "--epochs", 1, "--seg_loss", "dice", "--amsgrad", "--grad_clip", 0.1,
                   "--fusion_drop", 0.2, "--channels-last", "--mha", "1-2-4-8", "--window12", "--model_id", "try",
                   "--print-freq", 1, "--pin_mem", "--eval_vis_dir", "", "--wd_seg", 0.3, "--wd_pf", 0.2)
    content = checkpoint.read(str(tmp_path / "model_best_try.pth"))
    assert "1 of 1 epoch done; best overall IoU" in result.stdout
    assert len(content["model"]["backbone.layers.0.blocks.0.attn.relative_position_bias_table"]) == 23 ** 2
    assert content["args"]["mha"] == "1-2-4-8"
    groups = checkpoint.read(str(tmp_path / "last.pth"))["training"]["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.2]
    assert not (tmp_path / "eval_vis").exists()


def test_rates_decay_and_weights_decay_are_those_of_each_network(trained, scenes, tmp_path):
    """With both learning rates of one network at 0, only the other one moves."""
    start = checkpoint.read(str(trained / "last.pth"))
    for frozen, moving, flag in (("prefusion_model", "model", "--lr_pf"), ("model", "prefusion_model", "--lr_seg")):
        folder = tmp_path / frozen
        train(scenes, folder, "--epochs", 1, flag, 0, "--ck_prefusion", trained / "last.pth",
              "--init_from_lavt_one", lavt_one(start, tmp_path), "--load_lavt_head", "--eval_vis_dir", "")
        end = checkpoint.read(str(folder / "last.pth"))
        weights = [key for key in start[frozen] if key.endswith("weight") and start[frozen][key].dim() > 1]
        assert all(torch.equal(start[frozen][key], end[frozen][key]) for key in weights)
        assert not any(torch.equal(start[moving][key], end[moving][key])
                       for key in start[moving] if key.endswith(("outc.weight", "conv1_1.weight")))


def lavt_one(content: dict, folder) -> str:
    path = folder / "lavt_one.pth"
    tensors = content["model"] | {f"text_encoder.{key}": tensor for key, tensor in content["bert_model"].items()}
    torch.save({"model": tensors}, path)
    return str(path)


def test_starting_anew_in_a_folder_keeps_the_earlier_run(scenes, tmp_path):
    for seed in (1, 2):
        result = train(scenes, tmp_path, "--epochs", 3 - seed, "--seed", seed)
    assert "earlier_run_1" in result.stdout
    assert [path.name for path in (tmp_path / "eval_vis").glob("*.png")] == ["epoch_000.png"]
    assert len(list((tmp_path / "eval_vis" / "earlier_run_1").iterdir())) == 2
    assert (len(epochs_of(tmp_path)), len(epochs_of(tmp_path / "earlier_run_1"))) == (1, 2)
    for name in ("last.pth", "model_best_lavt.pth"):
        assert checkpoint.read(str(tmp_path / name))["args"]["seed"] == 2
        assert checkpoint.read(str(tmp_path / "earlier_run_1" / name))["args"]["seed"] == 1


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--img_size", 32], 2, "single position, on which InstanceNorm"),
    (["--pretrained_swin_weights", "absent.pth"], 2, "--pretrained_swin_weights: there is no 'absent.pth'"),
    (["--init_from_lavt_one", "absent.pth"], 2, "--init_from_lavt_one: there is no 'absent.pth'"),
    (["--ck_prefusion", "absent.pth"], 2, "--ck_prefusion: there is no 'absent.pth'"),
    (["--ck_bert", "absent"], 2, "--ck_bert: there is no 'absent'"),
    (["--bert_tokenizer", "absent"], 2, "--bert_tokenizer: there is no 'absent'"),
    (["--bert_tokenizer", ""], 2, "a vocabulary cannot be random"),
    (["--train_parquet", "absent"], 2, "--train_parquet: there is no 'absent'"),
    (["--train_parquet", "README.md"], 1, "README.md: this is not a parquet file"),
    (["--ck_prefusion", "README.md"], 1, "--ck_prefusion: README.md cannot be read"),
    (["--mha", "2-2"], 2, "--mha: '2-2' is not four numbers"),
    (["--mha", "3-3-3-3"], 2, "3 heads do not divide the 32 channels"),
    (["--device", "tpu"], 2, "--device: 'tpu' is none of auto, cuda, npu and cpu"),
    (["--device", "cuda:99"], 2, "--device: cuda:99"),
    (["--model_id", "../x"], 2, "--model_id: '../x' cannot be part of a file name"),
    (["--load_lavt_head"], 2, "--load_lavt_head: there is no classifier"),
    (["--init_from", "absent.pth"], 2, "--init_from: there is no 'absent.pth'"),
    (["--init_from", "README.md"], 1, "--init_from: README.md cannot be read"),
    (["--init_from", "README.md", "--ck_prefusion", "README.md"], 2, "--init_from: leave out --ck_prefusion"),
    (["--lr", "1e-4"], 2, "--lr: there is no such flag here; use --lr_seg for LAVT and BERT, and --lr_pf"),
    (["--weight-decay=0.1"], 2, "--weight-decay: there is no such flag here; use --wd_seg"),
    (["--model", "lavt"], 2, "--model: there is no such flag here; leave it out"),
    (["--model_id", "x" * 252], 2, "--model_id: too long for a file name"),
    (["--epochs", "9" * 400], 2, "--epochs: must be a whole number of at most"),
    (["--w_grad", "1e308"], 2, "--w_grad: must be a number of at most"),
    (["--seed", str(2 ** 64)], 2, "--seed: must be a whole number of at most"),
    (["--prefusion_base_ch", 100_000], 2, "--prefusion_base_ch: must be a whole number of at most 1024"),
    (["--ssim_window", 12], 2, "--ssim_window: must be odd"),
    (["--ssim_window", 65], 2, "--ssim_window: no such window fits"),
    (["--fusion_drop", "1"], 2, "--fusion_drop: must be below 1"),
    (["--lr_seg", "nan"], 2, "--lr_seg: must be a number of at least 0"),
    (["--epochs", "0"], 2, "--epochs: must be a whole number of at least 1"),
    (["--swin_typ", "micro"], 2, "unrecognized arguments: --swin_typ micro; is --swin_type meant?"),
    (["-b", 17], 1, "has 16 rows, fewer than the 17 of one step"),
    (["--train_fuser_only", "--freeze_bert"], 2, "leave out --freeze_bert"),
    (["--train_fuser_only", "--lambda_prefusion", "0"], 2, "nothing for --train_fuser_only to learn from"),
    (["--train_fuser_only", "--w_focus", 1], 2, "--w_focus: leave it out; it needs the masks of the objects"),
    (["--w_focus", 1, "--prefusion_model", "average"], 2, "--w_focus: --prefusion_model average has no parameters"),
    (["--w_focus", "-1"], 2, "--w_focus: must be a number of at least 0"),
    (["--train_fuser_only", "--detach_fused"], 2, "--detach_fused: leave it out; with --train_fuser_only there is no"),
    (["--detach_fused", "--lambda_prefusion", "0"], 2, "at --lambda_prefusion 0 the fuser has nothing else"),
    (["--fuser_text", "some"], 2, "--fuser_text: invalid choice: 'some'"),
    (["--torchcompile", "--grad-checkpointing"], 2, "cannot be combined"),
    (["--model-ema-decay", "1"], 2, "--model-ema-decay: must be below 1"),
    (["--grad-accum-steps", "5"], 1, "fewer than the 20 of one step"),
    (["--lr_seg", "1e30", "--max_bad_steps", "2"], 1, "this was number 2 in a row, and training stops")])
def test_what_cannot_work_ends_with_one_sentence(flags, code, message, scenes, tmp_path):
    result = train(scenes, tmp_path / "out", *flags, ok=False)
    assert result.returncode == code
    assert message in result.stderr and "usage:" not in result.stderr and len(result.stderr) < 500


def test_with_nothing_there_the_training_set_is_asked_for_first(tmp_path, monkeypatch, capsys):
    import train_with_lavt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_with_lavt.py"])
    with pytest.raises(SystemExit):
        run(train_with_lavt.main)
    assert capsys.readouterr().err.startswith("error: --train_parquet: there is no './data/mm_ris_train.parquet'")


def test_a_damaged_row_is_named_whichever_process_reads_it(scenes, tmp_path):
    table = pq.read_table(scenes / "mm_ris_train.parquet")
    images = table.column("infrared_image").to_pylist()
    images[3] = images[3][:50]
    place = table.schema.get_field_index("infrared_image")
    pq.write_table(table.set_column(place, "infrared_image", pa.array(images, pa.binary())), tmp_path / "bad.parquet")
    for workers in (0, 2):
        result = script(*training(scenes, tmp_path / "out", "--train_parquet", tmp_path / "bad.parquet", "-j", workers),
                        ok=False)
        assert result.returncode == 1
        assert result.stderr.strip().splitlines()[-1].startswith(
            f"error: {tmp_path / 'bad.parquet'}: row 3: infrared_image cannot be decoded")
        assert "Traceback" not in result.stderr


def test_a_vocabulary_larger_than_the_text_encoder_is_refused(scenes, tmp_path):
    words = (scenes / "bert" / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(words + ["zebra"]))
    result = train(scenes, tmp_path / "out", "--bert_tokenizer", tmp_path, ok=False)
    assert result.returncode == 1
    assert "name the folder with the vocabulary of its BERT" in result.stderr


def test_curves_of_several_runs_are_drawn_side_by_side(trained, tmp_path):
    script("utils/plot_log.py", trained, trained, "--out", tmp_path / "both.png")
    assert Image.open(tmp_path / "both.png").width > 600
    result = script("utils/plot_log.py", trained, "--out", tmp_path / "absent" / "curves.png", ok=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    result = script("utils/plot_log.py", tmp_path, ok=False)
    assert result.returncode == 2
    assert "there is no log.jsonl" in result.stderr


def test_rows_that_cannot_be_used_are_left_out_and_listed(scenes, tmp_path):
    """With -b 1 whole batches are empty, which must not end the run."""
    table = pq.read_table(scenes / "mm_ris_train.parquet")
    images = table.column("infrared_image").to_pylist()
    images[3], images[5] = images[3][:50], b"no picture"
    place = table.schema.get_field_index("infrared_image")
    pq.write_table(table.set_column(place, "infrared_image", pa.array(images, pa.binary())), tmp_path / "bad.parquet")
    for size in (4, 1):
        result = train(scenes, tmp_path / str(size), "--train_parquet", tmp_path / "bad.parquet", "--bad_rows", "skip",
                       "-b", size, "--epochs", 1, "--eval_vis_dir", "")
        epoch, = epochs_of(tmp_path / str(size))
        assert [message.split(": infrared_image")[0] for message in epoch["left_out"]] == [
            f"{tmp_path / 'bad.parquet'}: row {row}" for row in (3, 5)]
        assert result.stdout.count("WARNING: left out: ") == 2


@pytest.mark.parametrize("more", [[], ["--remove_cache"]])
def test_a_file_of_large_row_groups_is_copied_once_to_where_the_flag_says(more, scenes, tmp_path):
    table = pq.read_table(scenes / "mm_ris_train.parquet")
    table = pa.concat_tables([table, table.slice(0, 4)])
    masks = pa.array([large_mask(row) for row in range(len(table))])
    table = table.set_column(table.schema.get_field_index("segmentation"), "segmentation", masks)
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=len(table))
    result = train(scenes, tmp_path / "run", "--train_parquet", tmp_path / "large.parquet", "--cache_dir",
                   tmp_path / "cache", "--epochs", 1, *more)
    assert f"is written to {tmp_path / 'cache'}" in result.stdout
    assert len(list((tmp_path / "cache").glob("*.row_cache"))) == (0 if more else 1)


def large_mask(row: int) -> bytes:
    """A mask of 600 × 600 in float64, 2.9 MB, so that few rows make a large row group."""
    array = np.zeros((600, 600))
    array[20 * row:20 * row + 90, 100:200] = 1
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
