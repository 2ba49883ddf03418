"""Several processes on one machine, joined by gloo."""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, train, training

from training.lock import locked
from utils import checkpoint, distributed
from utils.errors import UsageError


def torchrun(count: int, *command) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return subprocess.Popen([*launcher, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def wait_until_there(path: Path, job: subprocess.Popen) -> None:
    """Follow what the job prints until it has made a file."""
    printed = []
    while not path.exists():
        printed.append(job.stdout.read(1))
        assert printed[-1], "".join(printed)


def finish(process: subprocess.Popen) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("seg_loss", ["ce", "bce_area"])
def test_a_step_of_several_processes_is_that_of_one_with_the_whole_batch(seg_loss, tiny_bert, tmp_path):
    gradients = {}
    for count in (1, 2, 3) if seg_loss == "ce" else (1, 2):
        finish(torchrun(count, "tests/step_of_several.py", tiny_bert, seg_loss, tmp_path / f"{count}.pt"))
        gradients[count] = torch.load(tmp_path / f"{count}.pt")
    whole = gradients.pop(1)
    for parts in gradients.values():
        assert parts.keys() == whole.keys()
        for network in ("text_encoder", "fuser", "segmenter"):
            one, several = (torch.cat([some[name].flatten() for name in whole if name.startswith(network)])
                            for some in (whole, parts))
            assert (one - several).norm() <= 1e-5 * one.norm()


def test_gradients_are_exchanged_in_bfloat16_on_demand(tiny_bert, tmp_path):
    for path, more in ((tmp_path / "exact.pt", []), (tmp_path / "rounded.pt", ["bf16_gradients"])):
        finish(torchrun(2, "tests/step_of_several.py", tiny_bert, "ce", path, *more))
    exact, rounded = torch.load(tmp_path / "exact.pt"), torch.load(tmp_path / "rounded.pt")
    assert all(torch.equal(value, value.bfloat16().float()) for value in rounded.values())
    one, other = (torch.cat([some[name].flatten() for name in exact]) for some in (exact, rounded))
    assert (one - other).norm() <= 0.01 * one.norm()


def test_the_flag_reaches_the_exchange(scenes, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("utils.distributed.wrap", lambda model, _, bf16: asked.append(bf16) or model)
    train(scenes, tmp_path, "--epochs", 1, "--bf16_gradients")
    assert asked == [True]


@pytest.mark.parametrize(("count", "accum"), [(2, 1), (2, 2), (4, 1)])
def test_a_step_sends_its_gradients_once_and_a_few_numbers(count, accum, tiny_bert, tmp_path):
    """Also with accumulation. That the job succeeds shows that no parameter is unused."""
    finish(torchrun(count, "tests/bytes_of_several.py", tiny_bert, accum, tmp_path / "sent.json"))
    report = json.loads((tmp_path / "sent.json").read_text())
    assert {name for name, _ in report["sent"]} == {"allreduce_"}  # no buffers, which would be broadcast
    sizes = [size for _, size in report["sent"]]
    buckets = [size for size in sizes if size > 1000]
    steps = report["steps"]
    assert sum(buckets) == steps * report["gradients"]
    terms = steps * 13 * 4  # ten loss terms and three gradient norms, read once for all steps
    assert sorted(size for size in sizes if size <= 1000) == [*[4] * (steps * accum), 8, terms]  # 4: class weights


@pytest.mark.parametrize("flags", [[], ["--fuser_text", "none", "--detach_fused"]])
def test_several_processes_train_and_only_one_writes(flags, scenes, tmp_path):
    output = finish(torchrun(2, *training(scenes, tmp_path, "--epochs", 1, "-b", 2, *flags)))
    assert "4 steps, 4 samples a step" in output
    assert output.count("16 training and 6 validation samples") == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "run.json").read_text())["effective_batch"] == 4
    assert {"last.pth", "model_best_lavt.pth", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


def test_where_the_main_process_finds_a_folder_in_use_all_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "largest", lambda _: True)  # the main process was refused
    with pytest.raises(UsageError, match="output-dir: another training run is writing to"), locked(str(tmp_path)):
        pass


def test_metrics_do_not_depend_on_the_number_of_processes(trained, scenes, tmp_path):
    """Neither 2 nor 3 divides the 7 test samples, nor 4 and 5 the 6 of the validation set."""
    evaluation = training(scenes, tmp_path, "--eval_only", "--resume", trained / "last.pth", "-b", 2)
    alone = table(finish(torchrun(1, *evaluation)))
    assert len(alone) > 10
    assert table(finish(torchrun(4, *evaluation))) == alone
    outcomes = []
    for count in (1, 2, 3):
        out = tmp_path / str(count)
        finish(torchrun(count, "test.py", "--ckpt", trained / "last.pth", "--test_parquet",
                        scenes / "mm_ris_test.parquet", "--out_dir", out, "-j", 0, "-b", 2, "--device", "cpu"))
        outcomes.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert outcomes[0].keys() == outcomes[1].keys() == outcomes[2].keys()
    assert outcomes[0] == outcomes[1] == outcomes[2]


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if re.match(r"\w*IoU |Prec|Recall|F1|prec|num_samples", line)]


def children(process: subprocess.Popen) -> list[int]:
    """The training processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_job_and_the_run_can_go_on(number, scenes, tmp_path):
    run = training(scenes, tmp_path, "-b", 2, "--eval_vis_dir", "")
    job = torchrun(2, *run, "--epochs", 50, "--save_every_minutes", 0, "--dist-timeout", 0.3)
    wait_until_there(tmp_path / "last.pth", job)
    victim = children(job)[1]
    os.kill(victim, number)
    output = job.communicate()[0]
    assert job.returncode != 0
    assert "another process of the job has died or has not answered within 0.3 minutes" in output
    epoch = checkpoint.read(str(tmp_path / "last.pth"))["training"]["progress"]["epoch"]
    result = train(scenes, tmp_path, "--eval_vis_dir", "", "--epochs", epoch + 1, "--resume", "auto", "-b", 4)
    assert "the job has 1 process, it had 2; dropout draws other numbers" in result.stdout


def test_a_signal_to_the_job_saves_once_for_all(scenes, tmp_path):
    job = torchrun(2, *training(scenes, tmp_path, "-b", 2, "--epochs", 50))
    wait_until_there(tmp_path / "log.jsonl", job)
    job.send_signal(signal.SIGTERM)
    output = job.communicate()[0]
    assert job.returncode != 0
    assert output.count("stopped by SIGTERM; the run so far is in") == 1
    states = checkpoint.read(str(tmp_path / "last.pth"))["training"]["random"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])  # dropout differs
    resumed = finish(torchrun(2, *training(scenes, tmp_path, "-b", 2, "--epochs", 2, "--resume", "auto")))
    assert "differs from the one it resumes: epochs" in resumed and "dropout" not in resumed


def test_a_full_disk_under_standard_output_fails_a_job_too():
    program = ("import torch; from utils import distributed; from utils.errors import run\n"
               "def main():\n    with distributed.job(torch.device('cpu'), 1):\n        print('a line')\nrun(main)")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | alone, check=False,
                              stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.count("error: standard output cannot be written (No space left on device)") == 1, done.stderr
