"""Which device a name stands for."""
import sys
from types import SimpleNamespace

import pytest
import torch

from utils.device import select_device
from utils.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """A machine with as many devices of each kind as a test asks for."""
    def build(cuda: int = 0, npu: int = 0):
        modules = {kind: SimpleNamespace(is_available=lambda n=n: n > 0, device_count=lambda n=n: n)
                   for kind, n in (("cuda", cuda), ("npu", npu))}
        monkeypatch.setattr(torch, "get_device_module", modules.__getitem__)
        monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(__spec__=object()) if npu else None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if npu else None)
    return build


def test_auto_takes_npu_before_cuda_before_cpu(machine, monkeypatch):
    machine()
    assert select_device("auto").type == "cpu"
    machine(cuda=1)
    assert select_device("auto").type == "cuda"
    machine(cuda=1, npu=1)
    monkeypatch.setattr(torch, "device", str)  # the real one knows npu only with torch_npu
    assert select_device("auto") == "npu"


def test_an_index_picks_one_of_several(machine):
    machine(cuda=2)
    assert select_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="there are 2 here, numbered from 0"):
        select_device("cuda:2")


def test_what_is_not_here_is_an_error_that_says_what_it_needs(machine):
    machine()
    with pytest.raises(UsageError, match="--device cuda: none is available here; it needs an NVIDIA GPU"):
        select_device("cuda")
    with pytest.raises(UsageError, match="--device npu:0: none is available here; it needs an Ascend NPU"):
        select_device("npu:0")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "cpu:-1"])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(UsageError, match="is none of auto, cuda, npu and cpu"):
        select_device(name)
