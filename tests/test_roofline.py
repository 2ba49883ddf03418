"""The roofline model of benchmarks/, on the demo's sizes and on cases computed by hand."""
import importlib
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import INPUTS

CHIP = {"name": "chip", "bf16": 4e12, "tf32": 2e12, "float32": 1e12, "bandwidth": 1e11, "link": 1e9, "source": "none"}


@pytest.fixture(scope="module")
def benchmarks():
    """The modules of benchmarks/, which are scripts beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("measure", "operators", "recording", "devices", "roofline", "scaling")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def step(benchmarks):
    return benchmarks.recording.record_training("demo", 2, 64, torch.bfloat16)


def operator(benchmarks, name="mm", flops=0, read=0, written=0, **more):
    values = {"place": "fuser", "backward": False, "dtype": "float32", "inputs": {0: read}, "outputs": {1: written},
              "kernels": 1, "elementwise": False}
    return benchmarks.operators.Operator(name=name, flops=flops, **(values | more))


def test_recorded_operations_are_those_that_pytorch_counts(benchmarks):
    recorded = benchmarks.recording.record_evaluation("demo", 2, 64, prepared=False).operators
    cpu = torch.device("cpu")
    model, batch = benchmarks.measure.make_model("demo", cpu).eval(), benchmarks.measure.make_batch(2, 64, cpu)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(*(batch[name] for name in INPUTS))
    assert sum(op.flops for op in recorded) == counter.get_total_flops() > 1e8
    decoder = sum(op.flops for op in recorded if op.network == "decoder")
    assert decoder == sum(counter.get_flop_counts()["RISFusion.segmenter.classifier"].values())


def test_a_step_is_recorded_by_network_and_pass(step):
    forward, backward = ({op.network for op in step.operators if op.backward == which} for which in (False, True))
    networks = {"text", "fuser", "Swin patches", *(f"Swin stage {i}" for i in (1, 2, 3, 4)), "decoder", "losses"}
    assert backward == networks
    assert forward == networks | {"bookkeeping", "optimizer"}
    flops = {which: sum(op.flops for op in step.operators if op.backward == which) for which in (False, True)}
    assert 1.8 < flops[True] / flops[False] < 2.1  # the attention kernel computes its scores again
    products = {op.dtype for op in step.operators if op.name in ("mm", "addmm")}
    assert products == {"bfloat16"}
    assert {op.dtype for op in step.operators if op.name == "native_layer_norm"} == {"float32"}  # as on CUDA


def test_every_parameter_gets_its_gradient(benchmarks, step):
    model = benchmarks.measure.make_model("demo", torch.device("cpu"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(size for _, size in step.gradients) == sum(p.nbytes for p in trained)
    assert len(step.gradients) == len(trained)


def test_bytes_are_inputs_read_and_outputs_written_once(benchmarks):
    with benchmarks.operators.Recorder() as recorder:
        a, b = torch.ones(8, 4), torch.ones(4)
        recorder.operators.clear()
        c = a.t() + b[:, None].expand(4, 8)
        c.mul_(2)
        torch.nn.functional.embedding(torch.tensor([1, 5]), a)
    add, scale, *_, pick = recorder.operators
    assert (add.name, sum(add.inputs.values()), sum(add.outputs.values())) == ("add", 4 * (32 + 4), 4 * 32)
    assert (scale.name, scale.bytes) == ("mul_", 4 * 2 * 32)
    assert (pick.name, pick.bytes) == ("embedding", 2 * 8 + 2 * 4 * 8)


def test_the_larger_of_operations_bytes_and_launch_is_the_bound(benchmarks):
    chip = benchmarks.devices.Device(**CHIP)
    busy = benchmarks.roofline.cost(operator(benchmarks, flops=10 ** 12, read=10 ** 9), chip, 1e-6)
    hungry = benchmarks.roofline.cost(operator(benchmarks, flops=10 ** 9, read=10 ** 9, written=10 ** 9), chip, 1e-6)
    small = benchmarks.roofline.cost(operator(benchmarks, read=100, kernels=3), chip, 1e-6)
    assert [some.bound for some in (busy, hungry, small)] == ["compute", "memory", "launches"]
    assert [some.seconds for some in (busy, hungry, small)] == pytest.approx([1 + 1e-6, 0.02 + 1e-6, 3e-6 + 1e-9])
    fast = benchmarks.roofline.cost(operator(benchmarks, flops=10 ** 12, dtype="bfloat16"), chip, 0)
    conv = benchmarks.roofline.cost(operator(benchmarks, name="convolution", flops=10 ** 12), chip, 0)
    assert (fast.seconds, conv.seconds) == (0.25, 0.5)  # PyTorch's convolutions use TF32


def test_fusion_keeps_what_is_read_later(benchmarks):
    first = operator(benchmarks, inputs={0: 10}, outputs={1: 10})
    second = operator(benchmarks, "relu", inputs={1: 10}, outputs={2: 10}, elementwise=True)
    later = operator(benchmarks, inputs={1: 10}, outputs={3: 10})
    assert [op.bytes for op in benchmarks.roofline.fused([first, second])] == [10, 10]
    assert [op.bytes for op in benchmarks.roofline.fused([first, second, later])] == [20, 10, 20]
    assert benchmarks.roofline.fused([first, second])[1].kernels == 0


def test_other_batch_sizes_follow_from_two(benchmarks, step):
    recorded = {size: benchmarks.recording.record_training("demo", size, 64, torch.bfloat16) for size in (4, 8)}
    guess = benchmarks.recording.scaled(step.operators, recorded[4].operators, (2, 4), 8)
    exact = recorded[8].operators
    assert [(op.name, op.flops) for op in guess] == [(op.name, op.flops) for op in exact]
    assert sum(op.bytes for op in guess) == pytest.approx(sum(op.bytes for op in exact), rel=0.01)


def test_all_reduce_takes_what_it_takes_on_paper(benchmarks):
    scaling = benchmarks.scaling
    assert scaling.Cluster(1, 1e9).all_reduce(1e6) == 0
    node = scaling.Cluster(8, 1e9).all_reduce(8e6)  # 2 · 7/8 · 8 MB at 1 GB/s, and 14 hops of 2 µs
    assert node == pytest.approx(14e-3 + 28e-6)
    # and between 4 machines 2 · 3/4 of the eighth of it at 0.5 GB/s, and 4 hops of 10 µs
    assert scaling.Cluster(32, 1e9, 0.5e9).all_reduce(8e6) == pytest.approx(node + 3e-3 + 40e-6)


def test_only_what_the_backward_pass_does_not_hide_counts(benchmarks):
    scaling = benchmarks.scaling
    cluster = scaling.Cluster(2, 1e9)  # a byte takes 1 ns, a bucket 4 µs more
    hidden, half = [(0.01, 10 ** 6)], [(0.0, 2 * 10 ** 6), (0.001, 3 * 10 ** 6)]
    assert scaling.exposed(hidden, 0.02, cluster) == 0
    assert scaling.exposed(half, 0.003, cluster) == pytest.approx(0.002 + 8e-6)
    assert scaling.exposed(half, 0.003, cluster, share=0.5) == 0
    mib = 2 ** 20
    filled = scaling.buckets([(1, mib), (2, 20 * mib), (3, 4 * mib), (4, 6 * mib), (5, mib)])
    assert filled == [(1, mib), (4, 30 * mib), (5, mib)]


def test_accumulation_spreads_the_exchange_over_its_batches(benchmarks):
    scaling = benchmarks.scaling
    step = scaling.Step(forward=1.0, backward=2.0, rest=0.4, filled=[(2.0, 10 ** 9)], norms=0, bandwidth=1e12)
    cluster = scaling.Cluster(2, 1e9)
    assert step.on(scaling.Cluster(1, 1e9)) == pytest.approx(3.4)
    assert step.on(cluster) == pytest.approx(4.4, abs=1e-5)
    assert step.on(cluster, accumulated=4) == pytest.approx(3.35, abs=1e-5)
    assert step.on(cluster, share=0.5) == pytest.approx(3.903, abs=1e-5)
