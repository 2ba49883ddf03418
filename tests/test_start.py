"""What a training run starts from: all networks of a checkpoint, or files for single ones."""
from pathlib import Path

import pytest
import torch
from conftest import arguments, in_process, train
from safetensors.torch import load_file

from bert.tiny import write_tiny_bert
from models import build_model
from training.start import open_text_encoder
from utils import checkpoint
from utils.errors import InputError, UsageError
from utils.flags import BERT

STILL = ("--lr_seg", 0, "--lr_pf", 0, "--epochs", 1, "--eval_vis_dir", "")


def weights_of(content: dict) -> dict:
    """What an optimizer changes, by network and name: neither statistics nor constants."""
    return {(part, key): tensor for part in ("model", "prefusion_model", "bert_model") for key, tensor in
            content[part].items() if key.endswith(("weight", "bias")) or key.endswith("bias_table")}


def same_weights(one: dict, other: dict) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_a_new_run_can_start_from_all_networks_of_a_checkpoint(trained, scenes, tmp_path):
    """The default Swin and LAVT files, which are not here, are then not needed, and imply no window."""
    from train_with_lavt import LAVT_ONE, SWIN

    best = trained / "model_best_lavt.pth"
    flags = (*STILL, "--init_from", best, "--pretrained_swin_weights", SWIN, "--init_from_lavt_one", LAVT_ONE)
    train(scenes, tmp_path, *flags)
    content = checkpoint.read(str(tmp_path / "last.pth"))
    assert same_weights(content, checkpoint.read(str(best)))
    assert content["epoch"] == 0 and content["args"]["window12"] is False
    resumed = train(scenes, tmp_path, *flags, "--epochs", 2, "--init_from", "moved away", "--resume", "auto")
    assert "resuming at epoch 1" in resumed.stdout and "window12" not in resumed.stdout


def test_the_fuser_alone_can_start_from_a_checkpoint_whatever_its_lavt(trained, scenes, tmp_path):
    flags = ("--train_fuser_only", "--swin_type", "base", "--window12", "--mha", "1-2-4-8", "--init_from",
             trained / "last.pth")
    train(scenes, tmp_path, *STILL, *flags)
    start, end = (checkpoint.read(str(folder / "last.pth"))["prefusion_model"] for folder in (trained, tmp_path))
    assert torch.equal(start["net.outc.weight"], end["net.outc.weight"])
    result = train(scenes, tmp_path, *STILL, *flags, "--prefusion_base_ch", 8, ok=False)
    assert "the fuser differs; BERT would fit; set prefusion_base_ch to 4" in result.stderr


def test_a_checkpoint_carries_its_bert(trained, scenes, tmp_path):
    """In plain values, so that it starts, resumes and is evaluated without BERT's folders."""
    best = trained / "model_best_lavt.pth"
    bert = checkpoint.read(str(best))["bert"]
    assert bert["vocabulary"] == (scenes / "bert" / "vocab.txt").read_text().splitlines()
    assert (bert["config"]["hidden_size"], bert["config"]["num_hidden_layers"]) == (128, 2)
    assert not Path(BERT).exists()
    flags = (*STILL, "--init_from", best, "--bert_tokenizer", BERT, "--ck_bert", BERT)
    train(scenes, tmp_path, *flags)
    content = checkpoint.read(str(tmp_path / "last.pth"))
    assert same_weights(content, checkpoint.read(str(best))) and content["bert"] == bert
    assert "resuming at epoch 1" in train(scenes, tmp_path, *flags, "--epochs", 2, "--resume", "auto").stdout
    scores = [train(scenes, tmp_path, "--eval_only", "--resume", best, *more).stdout
              for more in ([], ["--bert_tokenizer", BERT, "--ck_bert", BERT])]
    assert scores[0] == scores[1]
    del content["bert"]
    torch.save(content, tmp_path / "without.pth")
    result = train(scenes, tmp_path / "out", *flags, "--init_from", tmp_path / "without.pth", ok=False)
    assert result.returncode == 2 and result.stderr.startswith("error: --bert_tokenizer: there is no folder")


def test_a_checkpoint_without_bert_gives_the_other_networks(trained, scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    torch.save({name: content[name] for name in ("model", "prefusion_model")}, tmp_path / "two.pth")
    result = train(scenes, tmp_path / "out", *STILL, "--init_from", tmp_path / "two.pth")
    assert "WARNING" in result.stdout and "has no 'bert_model'" in result.stdout
    end = checkpoint.read(str(tmp_path / "out" / "last.pth"))
    start = load_file(scenes / "bert" / "model.safetensors")
    assert same_weights(end, content | {"bert_model": {key: start[key] for key in content["bert_model"]}})


def test_without_the_weights_of_bert_its_folder_is_needed_though_the_configuration_is_carried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder bert/
    with pytest.raises(UsageError, match="ck_bert: there is no folder"):
        open_text_encoder(BERT, {"bert": {"config": {"num_hidden_layers": 1}, "vocabulary": []}}, "two.pth")


def test_a_bert_far_larger_than_the_weights_of_the_checkpoint_is_refused_before_it_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # of bert-base-uncased
    content = {"bert": {"config": {}, "vocabulary": []}, "bert_model": {"weight": torch.zeros(9, 9)}}
    for folder in (str(tmp_path), BERT):
        with pytest.raises(InputError, match=r"parameters; its weights, 324 bytes, are too few for that"):
            open_text_encoder(folder, content, "last.pth")


def test_an_absent_relative_position_index_is_no_reason_to_refuse_a_checkpoint(trained, scenes, tmp_path):
    content = checkpoint.read(str(trained / "last.pth"))
    content["model"] = {key: tensor for key, tensor in content["model"].items()
                        if not key.endswith("relative_position_index")}
    torch.save(content, tmp_path / "older.pth")
    train(scenes, tmp_path / "out", *STILL, "--init_from", tmp_path / "older.pth")
    assert same_weights(checkpoint.read(str(tmp_path / "out" / "last.pth")), content)


@pytest.mark.parametrize(("flags", "words"), [
    (["--prefusion_base_ch", 8], "the fuser differs; LAVT and BERT would fit; set prefusion_base_ch to 4"),
    (["--swin_type", "tiny"], "LAVT differs; the fuser and BERT would fit; set swin_type to micro"),
    (["--window12"], "LAVT differs; the fuser and BERT would fit; leave out window12"),
    (["--mha", "1-2-4-8"], "PWAM had other heads; LAVT and the fuser and BERT would fit; set mha to 1-1-1-1"),
    (["--swin_type", "tiny", "--prefusion_base_ch", 8],
     "LAVT differs, the fuser differs; BERT would fit; set swin_type to micro, set prefusion_base_ch to 4"),
    (["BERT"], "BERT differs; LAVT and the fuser would fit; set ck_bert and bert_tokenizer to the BERT that")])
def test_a_checkpoint_of_other_sizes_is_refused_with_what_would_fit(flags, words, trained, scenes, tmp_path):
    if flags == ["BERT"]:
        write_tiny_bert(str(tmp_path / "bert"), ["the man"], layers=3)
        flags = ["--ck_bert", tmp_path / "bert", "--bert_tokenizer", tmp_path / "bert"]
    result = train(scenes, tmp_path / "out", *STILL, "--init_from", trained / "last.pth", *flags, ok=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: --init_from: {trained / 'last.pth'} does not fit this run")
    assert words in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_checkpoint_given_to_the_wrong_flag_is_pointed_to_the_right_one(trained, scenes, tmp_path):
    best = trained / "model_best_lavt.pth"
    for flag in ("--resume", "--init_from_lavt_one"):
        result = train(scenes, tmp_path / "out", flag, best, ok=False)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: {flag}: {best}") and "init_from" in result.stderr.split(str(best))[1]


def test_the_window_that_a_swin_files_name_implies_is_stored(scenes, tmp_path):
    """Other programs build the model from these settings."""
    swin = tmp_path / "swin_window12.pth"
    model = build_model(arguments(swin_type="micro", window12=True, ck_bert=str(scenes / "bert")))
    torch.save({"model": model.segmenter.backbone.state_dict()}, swin)
    flags = ("--pretrained_swin_weights", swin, "--eval_vis_dir", "")
    train(scenes, tmp_path / "out", *flags, "--epochs", 1)
    content = checkpoint.read(str(tmp_path / "out" / "last.pth"))
    assert content["args"]["window12"] is True
    content["args"]["window12"] = False  # as earlier versions stored it
    torch.save(content, tmp_path / "out" / "last.pth")
    resumed = train(scenes, tmp_path / "out", *flags, "--epochs", 2, "--resume", "auto")
    assert "resuming at epoch 1" in resumed.stdout and "window12 is" not in resumed.stdout


def test_a_new_run_can_start_from_an_exported_folder(trained, scenes, tmp_path):
    in_process("export.py", "--ckpt", trained / "model_best_lavt.pth", "--to", tmp_path / "model")
    train(scenes, tmp_path / "run", *STILL, "--init_from", tmp_path / "model", "--bert_tokenizer", BERT,
          "--ck_bert", BERT)
    assert same_weights(checkpoint.read(str(tmp_path / "run" / "last.pth")),
                        checkpoint.read(str(trained / "model_best_lavt.pth")))
    result = train(scenes, tmp_path / "again", "--resume", tmp_path / "model", ok=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "is a folder" in result.stderr and "--init_from starts a new run" in result.stderr
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_of_other_sizes_is_told_before_too_few_rows(trained, scenes, tmp_path):
    flags = ("-b", 999, "--init_from", trained / "last.pth", "--swin_type", "tiny")
    assert "set swin_type to micro" in train(scenes, tmp_path, *STILL, *flags, ok=False).stderr
    assert "fewer than the 999 of one step" in train(scenes, tmp_path, *STILL, *flags[:4], ok=False).stderr
