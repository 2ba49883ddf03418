"""Which device a name stands for, and that everything about a device goes through one module."""
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from utils import device as devices
from utils.device import select_device
from utils.errors import UsageError

# Put in the place of torch_npu: gives PyTorch a device kind `npu` with two devices, and notes what is asked of them.
TORCH_NPU = """
import types
import torch

CALLS = []


class Module(types.ModuleType):
    ANSWERS = {"is_available": True, "device_count": 2, "get_device_name": "Ascend", "max_memory_allocated": 3 << 30,
               "get_rng_state": torch.zeros(16, dtype=torch.uint8), "_is_in_bad_fork": False,
               "get_amp_supported_dtype": [torch.bfloat16, torch.float16]}

    def __getattr__(self, name):
        def call(*arguments, **options):
            CALLS.append([name, *map(str, arguments)])
            return self.ANSWERS.get(name)
        return call


torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", Module("torch.npu"))
"""
USE = """
import json, sys
import torch
from utils import device as devices
device = devices.select_device("auto", local_rank=1)
devices.seed_everything(7)
state = devices.random_state(device)
devices.set_random_state(state, device)
devices.synchronize(device)
with devices.autocast(device, torch.bfloat16):
    inside = torch.is_autocast_enabled("npu"), str(torch.get_autocast_dtype("npu"))
print(json.dumps({
    "device": str(device), "name": devices.describe(device), "backend": devices.backend(device), "inside": inside,
    "after": torch.is_autocast_enabled("npu"), "memory": devices.peak_memory(device),
    "pin": devices.can_pin_memory(device), "sync": devices.can_sync_batchnorm(device),
    "fused": devices.has_fused_optimizers(device), "scaler": devices.grad_scaler(device, torch.float16)._device,
    "calls": sys.modules["torch_npu"].CALLS}))
"""


def use_npu(tmp_path, torch_npu: str, code: str) -> subprocess.CompletedProcess:
    (tmp_path / "torch_npu.py").write_text(torch_npu)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
                          capture_output=True, text=True, check=False)


def test_an_npu_is_seeded_read_and_driven_through_torch_npu(tmp_path):
    result = use_npu(tmp_path, TORCH_NPU, USE)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert (seen["device"], seen["name"]) == ("npu:1", "npu:1 (Ascend)")
    assert seen["backend"] == "cpu:gloo,npu:hccl"
    assert (seen["inside"], seen["after"]) == ([True, "torch.bfloat16"], False)
    assert (seen["memory"], seen["scaler"]) == (3 << 30, "npu")
    assert seen["pin"] and seen["sync"] and not seen["fused"]
    for call in (["set_device", "npu:1"], ["manual_seed_all", "7"], ["get_rng_state", "npu:1"],
                 ["synchronize", "npu:1"], ["max_memory_allocated", "npu:1"]):
        assert call in seen["calls"]
    assert [name for name, *_ in seen["calls"]].count("set_rng_state") == 1


def test_a_torch_npu_that_does_not_load_is_said_and_passed_over(tmp_path):
    code = ("import logging; logging.basicConfig(); from utils.device import select_device\n"
            "print(select_device('auto').type)\nselect_device('npu')")
    result = use_npu(tmp_path, "raise ImportError('libhccl.so: no such file')", code)
    assert result.stdout.strip() in ("cpu", "cuda")
    assert "torch_npu is installed but does not load: libhccl.so" in result.stderr
    assert "it needs an Ascend NPU, the CPU build of PyTorch and torch_npu of the same version" in result.stderr


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA devices; `chosen` lists those that were made current."""
    def build(cuda: int = 0):
        chosen = []
        module = SimpleNamespace(is_available=lambda: cuda > 0, device_count=lambda: cuda, set_device=chosen.append)
        monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        return chosen
    return build


def test_auto_takes_cuda_before_cpu(machine):
    machine()
    assert select_device("auto").type == "cpu"
    machine(cuda=1)
    assert select_device("auto").type == "cuda"


def test_an_index_picks_one_of_several(machine):
    chosen = machine(cuda=2)
    assert select_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    with pytest.raises(UsageError, match="there are 2 here, numbered from 0"):
        select_device("cuda:2")


def test_each_of_several_processes_takes_a_device_of_its_own(machine):
    machine(cuda=2)
    assert select_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert select_device("cpu", local_rank=5) == torch.device("cpu")
    with pytest.raises(UsageError, match="process 2 of this machine finds 2 devices; .* --nproc_per_node=2"):
        select_device("cuda", local_rank=2)
    with pytest.raises(UsageError, match="leave out the index"):
        select_device("cuda:1", local_rank=0)


def test_what_is_not_here_is_an_error_that_says_what_it_needs(machine):
    machine()
    with pytest.raises(UsageError, match="device: cuda: none is available here; it needs an NVIDIA GPU"):
        select_device("cuda")
    with pytest.raises(UsageError, match="device: npu:0: none is available here; it needs an Ascend NPU"):
        select_device("npu:0")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "cpu:-1", "cpu:00", "cuda:٣", "cuda:\n",
                                  "cpu:" + "9" * 5000, "cuda:0:0", None])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(UsageError, match="is none of auto, cuda, npu and cpu"):
        select_device(name)


def test_apples_gpus_are_refused_with_what_works():
    for name in ("mps", "mps:0", torch.device("mps")):
        with pytest.raises(UsageError, match="GPUs of Apple are not supported; use cpu"):
            select_device(name)


def test_a_device_of_pytorch_is_a_good_name():
    assert select_device(torch.device("cpu")) == torch.device("cpu")


def test_memory_is_measured_in_bytes_and_unknown_without_the_module(monkeypatch):
    cpu = torch.device("cpu")
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=2 ** 20))
    monkeypatch.setitem(sys.modules, "resource", resource)
    for platform, size in (("linux", 2 ** 30), ("darwin", 2 ** 20)):
        monkeypatch.setattr(sys, "platform", platform)
        assert devices.peak_memory(cpu) == size
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert devices.peak_memory(cpu) == 0


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("Tried to allocate 20.00 GiB"), True), (MemoryError(), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"), True),
    (RuntimeError("shapes differ"), False), (ValueError("out of memory"), False)])
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert devices.is_out_of_memory(error) == expected


def test_random_states_come_back_whatever_was_drawn_since():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), float(torch.rand(1))

    cpu = torch.device("cpu")
    devices.seed_everything(3)
    state = devices.random_state(cpu)
    drawn = draw()
    draw()
    devices.set_random_state(state, cpu)
    assert draw() == drawn


def test_no_other_module_names_a_kind_of_device():
    """So that a new kind needs one file."""
    rooms = [path for room in ("utils", "models", "data", "bert", "evaluation", "training")
             for path in (ROOT / room).rglob("*.py")]
    scripts = [ROOT / f"{name}.py" for name in ("engine", "trainer", "evaluator", "predictor")]
    for path in [*scripts, *rooms]:
        if path.name not in ("device.py", "foreign.py"):  # the latter reads what other devices wrote
            assert not any(word in path.read_text() for word in ("torch.cuda", "torch.npu", '"cuda', '"npu', "nccl"))


def test_16_bits_are_warned_of_where_the_cpu_has_no_instructions_for_them(monkeypatch, caplog):
    cpu = torch.device("cpu")
    assert not devices.is_slow(cpu, None) and not devices.is_slow(torch.device("cuda"), torch.bfloat16)
    for seconds, slow in ((4, False), (5, True)):  # five products in 16 bits, then five in float32 of a second each
        clock = itertools.accumulate([0, *[seconds, 1] * 5, *[1] * 10])
        monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=clock.__next__))
        assert devices.is_slow(cpu, torch.bfloat16) == slow
    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    assert not devices.is_slow(cpu, torch.float32)  # tried like any other type
    devices.warn_if_slow(cpu, None)
    assert not caplog.text
    monkeypatch.setattr(devices, "is_slow", lambda device, dtype: True)
    devices.warn_if_slow(cpu, torch.bfloat16)
    assert "no instructions for bfloat16" in caplog.text and "leave out amp" in caplog.text
