"""The benchmark of a GPU, as far as a CPU can show it: what it reports, and what is left when something goes wrong."""
import importlib
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, script

# Put in the place of the processes that measure: writes rows as they do, or fails in the way that its settings name.
STAND_IN = """
import json, os, signal, sys, time
settings = json.load(open(sys.argv[sys.argv.index("--settings") + 1]))
what = sys.argv[sys.argv.index("--task") + 1]
def row(name):
    print(json.dumps({"row": name, "seconds": 0.1, "state": "ok", "figures": {"kind": "cpu"}}), flush=True)
row(settings["rows"][0])
if what == "raises":
    print("half a ro", end="", flush=True)
    sys.exit("RuntimeError: no more")
if what == "hangs":
    time.sleep(600)
if what == "stops the benchmark":
    open(os.path.join(settings["out"], "pid"), "w").write(str(os.getpid()))
    while json.load(open(os.path.join(settings["out"], "gpu.json")))["rows"][-1]["row"] != settings["rows"][0]:
        pass
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
for name in settings["rows"][1:]:
    row(name)
"""
DRIVER = """
import sys
sys.path.insert(0, "benchmarks")
import bench_gpu
from gpu.plan import DEVICE, Row, Task
stand_in, out, *kinds = sys.argv[1:]
sys.argv = ["bench_gpu.py", "--out", out, "--parts", "right", "training"]
bench_gpu.SCRIPT = stand_in
rows = Row("first"), Row("second"), Row("needs CUDA", "there is none")
least, most = {"is long": 10_000}, {"hangs": 3}
bench_gpu.tasks = lambda tiny: [Task("device", DEVICE, "works", (Row("device"),), 0, 60), *(
    Task(kind, "right", kind, rows, least.get(kind, 1), most.get(kind, 60)) for kind in kinds)]
bench_gpu.run(bench_gpu.main)
"""


@pytest.fixture
def bench(tmp_path):
    """Runs the benchmark with such processes in the place of its own; the exit code, and (row, state, why) by part."""
    def carry_out(*kinds: str) -> tuple[int, dict]:
        (tmp_path / "stand_in.py").write_text(STAND_IN)
        done = subprocess.run([sys.executable, "-c", DRIVER, tmp_path / "stand_in.py", tmp_path, *kinds], cwd=ROOT,
                              capture_output=True, text=True, check=False, timeout=60)
        report = json.loads((tmp_path / "gpu.json").read_text())
        return done.returncode, report | {"said": done.stdout + done.stderr, "rows": [
            (row["row"], row["state"], row["why"]) for row in report["rows"]]}
    return carry_out


@pytest.fixture
def gpu(monkeypatch):
    """Modules of benchmarks/gpu/ by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: importlib.import_module(f"gpu.{name}")


def test_every_row_is_measured_or_said_to_be_left_out(tmp_path):
    result = script("benchmarks/bench_gpu.py", "--tiny", "--device", "cpu", "--parts", "training", "--out", tmp_path)
    report, page = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    rows = {row["row"]: row for row in report["rows"]}
    measured = {"device", "bf16", "bf16, channels-last", "float32"}
    assert rows.keys() == measured | {"TF32", "bf16, compiled", "largest batch, bf16",
                                      "largest batch, bf16 and --grad-checkpointing"}
    for name, row in rows.items():
        assert row["state"] == ("ok" if name in measured else "left out")
        assert (name in page) and (f"{name}:" in result.stdout)
        assert row["figures"] if name in measured else (row["why"] and row["why"] in page)
    step = rows["bf16"]["figures"]
    assert (step["batch"], step["px"]) == (2, 64)
    flops = 3 * 2 * rows["device"]["figures"]["forward pass, GFLOP"] / 1e3
    assert math.isclose(step["TFLOP/s"], flops / step["ms"] * 1e3)
    networks = next(iter(rows["bf16"]["tables"].values()))
    assert {"fuser", "text", "Swin stage 3", "decoder", "losses", "optimizer"} <= {line[0] for line in networks["rows"]}
    assert report["ended"].startswith("complete")


def test_a_process_that_dies_costs_its_own_rows(bench):
    code, report = bench("raises", "works")
    assert code == 1 and "not in order: second" in report["said"]
    assert report["rows"] == [
        ("device", "ok", ""),
        ("needs CUDA", "left out", "there is none"), ("first", "ok", ""),
        ("second", "failed", "the process ended with 1: RuntimeError: no more"),
        ("needs CUDA", "left out", "there is none"), ("first", "ok", ""), ("second", "ok", "")]


def test_a_process_that_takes_too_long_is_ended_and_what_does_not_fit_is_left_out(bench):
    code, report = bench("hangs", "is long", "works")
    assert code == 1
    assert ("second", "failed", "not there after 3 s") in report["rows"]
    states = [state for row, state, _ in report["rows"] if row in ("first", "second")]
    assert states == ["ok", "failed", "left out", "left out", "ok", "ok"]
    assert any("s were left, it needs 10000" in why for _, _, why in report["rows"])


def test_only_left_out_rows_are_no_failure(bench):
    code, report = bench("is long", "works")
    assert code == 0 and report["ended"].startswith("complete")


def test_an_interrupted_run_leaves_what_it_had_and_no_process(bench, tmp_path):
    code, report = bench("works", "stops the benchmark", "works")
    assert code == 143 and report["ended"] == "interrupted"
    assert [row for row, state, _ in report["rows"] if state == "ok"] == ["device", "first", "second", "first"]
    assert "| first | ok | cpu |" in (tmp_path / "gpu.md").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_row_that_fails_costs_itself_alone(gpu):
    child, sent = gpu("child"), []
    settings = {"device": "cpu", "tiny": True, "batch_size": 8, "out": "", "scratch": "", "earlier": {},
                "rows": ["broken", "wrong", "sound"]}
    bench = child.Bench(settings, sent.append)

    def wrong():
        raise child.Wrong("they differ", {"difference": 2.0})

    bench.row("not asked for", dict)
    bench.row("broken", lambda: bench.shape / 2)
    bench.row("wrong", wrong)
    bench.row("sound", lambda: {"ms": 1.0})
    assert [(row["row"], row["state"]) for row in sent] == [("broken", "failed"), ("wrong", "wrong"), ("sound", "ok")]
    assert sent[0]["why"].startswith("TypeError: unsupported operand") and "test_bench_gpu.py:" in sent[0]["why"]
    assert sent[1]["figures"] == {"difference": 2.0}


def test_a_batch_that_does_not_fit_is_halved_twice(gpu):
    child = gpu("child")
    settings = {"device": "cpu", "tiny": True, "batch_size": 8, "out": "", "scratch": "", "earlier": {}, "rows": []}
    bench, tried = child.Bench(settings, None), []

    def make(size):
        tried.append(size)
        if size > 4:
            raise MemoryError
        return SimpleNamespace(run=lambda times: None)

    assert bench.fitting(make, 16)[1] == 4 and tried == [16, 8, 4]
    with pytest.raises(MemoryError):
        bench.fitting(make, 32)


@pytest.mark.parametrize(("limit", "start", "found"), [(100, 16, 96), (16, 16, 16), (1, 16, 1), (0, 4, 0), (23, 8, 22)])
def test_the_largest_batch_is_found_to_an_eighth(gpu, limit, start, found):
    size, sure = gpu("training").search(lambda size: size <= limit, start, time.monotonic() + 60)
    assert (size, sure) == (found, True) and size <= limit <= size * 9 / 8 + 1


def test_the_search_ends_when_its_time_is_over(gpu):
    assert gpu("training").search(lambda size: True, 16, time.monotonic() - 1) == (0, False)


def test_kernels_are_counted_and_the_time_without_one_is_found(gpu):
    events = [{"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in (
        ("kernel", "product", 0, 400), ("kernel", "product", 1000, 400), ("kernel", "norm", 1200, 300),
        ("gpu_memcpy", "copy", 1900, 100), ("cpu_op", "aten::mm", 0, 5000))]
    figures, table = gpu("kernels").summarise(events, ("kernel", "gpu_memcpy"), 2)
    assert figures["kernels a step"] == 1.5
    assert figures["busy, ms a step"] == pytest.approx(0.5)  # 400 + 500 + 100 µs in two steps
    assert figures["share without a kernel, profiled"] == pytest.approx(0.5)
    assert table["rows"][0] == ["product", pytest.approx(0.4), pytest.approx(800 / 1200), 1.0]


def test_steps_that_differ_are_wrong(gpu):
    import torch

    right, wrong = gpu("right"), gpu("child").Wrong
    terms, gradients = {"total": 2.0}, {"fuser": torch.ones(4)}
    assert right.compare_steps((terms, gradients), (terms, gradients))["gradient of fuser"] == 0
    for other in (({"total": 2.1}, gradients), (terms, {"fuser": torch.tensor([1, 1, 1, 1.1])}),
                  (terms, {"fuser": torch.full((4,), torch.nan)}), ({}, gradients)):
        with pytest.raises(wrong):
            right.compare_steps((terms, gradients), other)
    assert right.worst({"a": 0.1, "b": math.nan, "c": 0.2}) == "b" and right.worst({"a": 0.1, "c": 0.2}) == "c"


def test_results_of_an_earlier_run_are_kept(bench, tmp_path):
    bench("raises")
    first = (tmp_path / "gpu.json").read_text()
    bench("works")
    assert (tmp_path / "earlier_run_1" / "gpu.json").read_text() == first != (tmp_path / "gpu.json").read_text()
