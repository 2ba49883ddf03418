"""Training steps and validation: what is skipped, accumulated, measured and recomputed."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import train
from torch.utils._python_dispatch import TorchDispatchMode

import engine
import trainer
from data.object_sizes import small_objects
from engine import PendingTerms, Progress, train_one_epoch
from models import INPUTS, Output, build_criterion, build_model
from models.fast import checkpoint_activations, save_memory
from training.advice import on_finding_nothing
from training.optimizer import build_optimizer, learning_rates, polynomial_decay
from utils.device import autocast, grad_scaler
from utils.errors import InputError
from utils.progress import progress_bar

CPU = torch.device("cpu")
ARGS = SimpleNamespace(
    swin_type="micro", window12=False, mha="", fusion_drop=0.0, prefusion_base_ch=4, pretrained_swin_weights="",
    seg_loss="ce", lambda_prefusion=3.0, w_ssim_vis=0.5, w_ssim_ir=0.0, w_mse_vis=0.5, w_mse_ir=2.0, w_sobel_vis=0.0,
    w_sobel_ir=1.0, w_grad=1.0)
NEVER = SimpleNamespace(due=lambda: 0)


@pytest.fixture(scope="module")
def start(tiny_bert):
    torch.manual_seed(0)
    ARGS.ck_bert = tiny_bert
    return build_model(ARGS)


@pytest.fixture
def model(start):
    return copy.deepcopy(start)


def batches(count: int, size: int = 2, bad: tuple[int, ...] = ()) -> list[dict]:
    """Batches of noise; those numbered in `bad` have pixels that are no numbers."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        vis, ir = torch.randn(2, size, 3, 64, 64, generator=generator)
        if number in bad:
            ir[0, 0, 0, 0] = torch.nan
        made.append({
            "vis": vis, "ir": ir, "input_ids": torch.randint(1, 50, (size, 20), generator=generator),
            "attention_mask": torch.ones(size, 20, dtype=torch.int64),
            "target": torch.randint(0, 2, (size, 64, 64), generator=generator),
            "row": torch.arange(number * size, number * size + size)})
    return made


def run(model, loader, **options) -> Progress:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    progress = Progress()
    train_one_epoch(
        model, build_criterion(ARGS), loader, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        grad_scaler(CPU, options.get("dtype")), CPU, progress, NEVER, networks=model.networks(), **options)
    return progress


def state(model) -> dict:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(model, start, capsys):
    good, other = batches(3), copy.deepcopy(start)
    torch.manual_seed(2)
    progress = run(model, batches(1, bad=(0,)), print_freq=1)
    assert all(torch.equal(tensor, state(start)[name]) for name, tensor in state(model).items())
    assert (progress.step, progress.skipped, progress.sums) == (1, 1, {})
    output = capsys.readouterr().out
    assert "WARNING: epoch 0, step 1: not finite: " in output
    assert "total" in output and "rows 0, 1; the step was skipped" in output
    torch.manual_seed(2)
    run(model, good)
    torch.manual_seed(2)
    run(other, good)
    assert all(torch.equal(tensor, state(other)[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("seconds", [60, 0])
def test_a_log_gets_lines_in_place_of_a_bar_and_only_of_what_takes_long(seconds, model, monkeypatch, capsys):
    monkeypatch.setattr("utils.progress.EVERY", seconds)
    run(model, batches(3, bad=(1,)), print_freq=1)
    lines = capsys.readouterr().out.split("\n")  # not at carriage returns
    assert "\r" not in "".join(lines) and lines.pop() == "" and all(lines)
    steps = [line for line in lines if "WARNING" not in line]
    assert len(lines) - len(steps) == 1
    if seconds:
        assert not steps
    else:
        assert steps[-1].startswith("epoch 0: 100% 3/3 [") and "total=" in steps[-1]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert list(progress_bar([1, 2], desc="reading")) == [1, 2]
    assert "\rreading: 100%|" in capsys.readouterr().out


def test_two_bars_in_a_log_write_no_control_characters(monkeypatch, capsys):
    monkeypatch.setattr("utils.progress.EVERY", 0)
    for _ in progress_bar([1, 2], desc="pairs"):
        assert list(progress_bar([1, 2], desc="rows")) == [1, 2]
    printed = capsys.readouterr().out
    assert "pairs: 100%" in printed and "rows: 100%" in printed and "\x1b" not in printed


def test_too_many_in_a_row_end_the_run(model):
    assert run(model, batches(5, bad=(0, 1, 3, 4)), max_bad_steps=3, print_freq=2).skipped == 4
    with pytest.raises(InputError, match=r"rows 4, 5; this was number 3 in a row"):
        run(model, batches(4, bad=(0, 1, 2)), max_bad_steps=3, print_freq=2)


def test_a_gradient_alone_that_is_not_finite_is_skipped_too(model, start):
    class Explosive(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    model.fuser.net.outc.register_forward_hook(lambda _module, _inputs, luma: Explosive.apply(luma))
    progress = run(model, batches(1))
    assert progress.skipped == 1
    assert all(torch.equal(tensor, state(start)[name]) for name, tensor in state(model).items())


def test_float16_finding_its_scale_is_no_error():
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    progress = Progress(step=1)
    for dtype, expected in ((torch.float16, 0), (torch.bfloat16, 1)):
        pending = PendingTerms(progress, scaler, dtype, 10)
        pending.add(torch.tensor([3]), {"total": torch.tensor(1.0)}, {"fuser": torch.tensor(torch.inf)})
        pending.read()
        assert progress.bad_in_a_row == expected
    assert progress.skipped == 2


def test_the_device_is_waited_for_only_every_print_freq_steps(model, monkeypatch):
    calls, add, read = [], engine.PendingTerms.add, engine.PendingTerms.read
    monkeypatch.setattr(engine.PendingTerms, "add", lambda self, *values: calls.append("add") or add(self, *values))
    monkeypatch.setattr(engine.PendingTerms, "read", lambda self: calls.append("read") or read(self))
    run(model, batches(7, size=1), print_freq=3)
    assert calls == [*["add"] * 3, "read", *["add"] * 3, "read", "add", "read"]


def test_accumulated_batches_are_one_step(model):
    """Without batch norm and cross-entropy's weights, whose statistics are those of each batch."""
    model.eval()
    model.train = lambda mode=True: model
    seen = {}
    criterion = build_criterion(SimpleNamespace(**vars(ARGS) | {"seg_loss": "bce_area"}))
    for size, accum in ((4, 1), (2, 2)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0)
        optimizer.register_step_pre_hook(lambda *_, size=size: seen.update(
            {size: {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}))
        whole = batches(1, size=4)[0]
        loader = [{name: value[i:i + size] for name, value in whole.items()} for i in range(0, 4, size)]
        progress = Progress()
        train_one_epoch(model, criterion, loader, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
                        grad_scaler(CPU, None), CPU, progress, NEVER, networks=model.networks(), accum=accum)
        assert (progress.step, progress.samples) == (1, 4)
    for name, gradient in seen[4].items():
        assert (gradient - seen[2][name]).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("install", [checkpoint_activations, lambda model: save_memory(model, CPU, at_least=0)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_recomputing_changes_neither_gradients_nor_running_statistics(install, dtype, model):
    batch, outcomes = batches(1)[0], []
    for recomputed in (False, True):
        network = copy.deepcopy(model).train()
        if recomputed:
            install(network)
            network = copy.deepcopy(network)  # as for averaged weights
        torch.manual_seed(5)  # stochastic depth draws the same, and again in the second pass
        with autocast(CPU, dtype):
            output = network(*(batch[name] for name in INPUTS))
        loss, _ = build_criterion(ARGS)(output, batch["vis"], batch["ir"], batch["target"])
        loss.backward()
        outcomes.append({name: tensor.grad if isinstance(tensor, torch.nn.Parameter) else tensor for name, tensor in
                         [*network.named_parameters(), *network.named_buffers()]})
    plain, other = outcomes
    assert plain.keys() == other.keys() and all(
        tensor is None if other[name] is None else torch.equal(tensor, other[name]) for name, tensor in plain.items())


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")  # which does not see what is kept by choice
@pytest.mark.parametrize(("at_least", "fewer"), [(0, True), (2**40, False)])
def test_saving_memory_keeps_fewer_tensors_for_the_backward_pass_unless_they_are_small(at_least, fewer, model):
    batch, kept = batches(1)[0], []

    def count(network) -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(*(batch[name] for name in INPUTS))
        return sum(sizes.values())

    kept.append(count(model))
    save_memory(model, CPU, at_least=at_least)
    kept.append(count(model))
    assert kept[1] < 0.8 * kept[0] if fewer else kept[1] == kept[0]


def test_saving_memory_leaves_a_gpu_alone(model):
    kinds = [type(module) for module in model.modules()]
    save_memory(model, torch.device("cuda"))
    assert [type(module) for module in model.modules()] == kinds


class WaitsForDevice(TorchDispatchMode):
    """Notes every operation that makes the host wait for a GPU: reading a number, or sending one there."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero,
                                       torch.ops.aten.lift_fresh):
            self.seen.append(function)
        return function(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(model):
    """Shown on the CPU, where the same operations are carried out."""
    batch, criterion = batches(1)[0], build_criterion(ARGS)
    for _ in range(2):  # the first makes what is kept
        waits = WaitsForDevice()
        with waits:
            output = model.train()(*(batch[name] for name in INPUTS))
            loss, _ = criterion(output, batch["vis"], batch["ir"], batch["target"])
            loss.backward()
    assert not waits.seen


def test_losses_are_float32_whatever_the_networks_compute_in(model):
    batch = batches(1)[0]
    criterion = build_criterion(ARGS)
    vis, ir = batch["vis"], batch["ir"]
    output = Output(vis.bfloat16(), torch.randn(2, 2, 64, 64).bfloat16())
    loss, terms = criterion(output, vis, ir, batch["target"])
    assert loss.dtype == torch.float32 and all(term.dtype == torch.float32 for term in terms.values())
    with torch.autocast("cpu", torch.bfloat16):
        fused = model.eval()(vis, ir, batch["input_ids"], batch["attention_mask"]).fused
    assert fused.dtype == torch.float32  # bfloat16 could not tell 256 grey levels apart


def test_frozen_parts_stay_as_they_are(model, start):
    model.freeze(model.text_encoder)
    model.freeze(model.segmenter.backbone)
    run(model, batches(2))
    model.train()
    assert not model.text_encoder.training and not model.segmenter.backbone.training and model.fuser.training
    before = state(start)
    for name, tensor in state(model).items():
        if not name.startswith("fuser.mean") and not name.startswith("fuser.std"):  # constants
            frozen = name.startswith(("text_encoder", "segmenter.backbone"))
            assert frozen == torch.equal(tensor, before[name]), name


def allocate(*_args, **_options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_running_out_of_memory_names_what_helps(monkeypatch, scenes, tmp_path):
    monkeypatch.setattr(trainer, "train_one_epoch", allocate)
    result = train(scenes, tmp_path, "--eval_vis_dir", "", ok=False)
    assert result.returncode == 1
    for words in ("4 samples of 64×64 pixels on cpu", "-b", "--grad-accum-steps", "--amp", "--grad-checkpointing",
                  "--img_size"):
        assert words in result.stderr
    result = train(scenes, tmp_path, "--eval_vis_dir", "", "--amp", "-b", 1, ok=False)
    assert "1 sample of 64×64 pixels" in result.stderr and "--grad-checkpointing" in result.stderr
    assert "-b" not in result.stderr and "--amp" not in result.stderr  # they cannot be lowered or set once more


def test_networks_too_large_for_the_memory_are_not_blamed_on_the_batch(monkeypatch, scenes, tmp_path):
    monkeypatch.setattr(trainer, "assemble", allocate)
    result = train(scenes, tmp_path, "--eval_vis_dir", "", ok=False)
    assert result.returncode == 1
    assert "--prefusion_base_ch" in result.stderr and "--swin_type" in result.stderr and "-b" not in result.stderr


def test_both_learning_rates_follow_the_published_decay_step_by_step(model):
    """(1 − step / total)^0.9 in what each optimizer step uses, also in a run that is resumed in the middle."""
    def rates_used(steps_done: int, count: int) -> list[dict[str, float]]:
        optimizer = build_optimizer(model, CPU, lr_seg=1e-4, wd_seg=0.0, lr_pf=3e-4, wd_pf=0.0)
        scheduler = polynomial_decay(optimizer, total_steps=6, steps_done=steps_done)
        used = []
        optimizer.register_step_pre_hook(lambda *_: used.append(learning_rates(optimizer)))
        train_one_epoch(model, build_criterion(ARGS), batches(count), optimizer, scheduler, grad_scaler(CPU, None), CPU,
                        Progress(), NEVER, networks=model.networks())
        return used

    decay = [(1 - step / 6) ** 0.9 for step in range(6)]
    for used in (rates_used(0, 6), rates_used(0, 2) + rates_used(2, 4)):
        assert [rates["lr_seg"] for rates in used] == pytest.approx([1e-4 * factor for factor in decay])
        assert [rates["lr_pf"] for rates in used] == pytest.approx([3e-4 * factor for factor in decay])


def test_validation_can_measure_the_losses(model):
    """Means over samples, so that a last batch of one counts half of a batch of two."""
    class Loader(list):
        dataset = range(3)

    two, one = batches(1)[0], {name: value[:1] for name, value in batches(2)[1].items()}
    criterion = build_criterion(ARGS)
    metrics, counts = engine.evaluate(model, Loader([two, one]), CPU, criterion=criterion)
    with torch.no_grad():
        totals = [float(criterion(model(*engine.inputs_of(batch)), batch["vis"], batch["ir"],
                                  batch["target"])[1]["total"]) for batch in (two, one)]
    assert metrics["val_total"] == pytest.approx((2 * totals[0] + totals[1]) / 3, rel=1e-5)
    assert 0 < metrics["val_seg"] < metrics["val_total"] and len(counts) == 3
    assert "val_total" not in engine.evaluate(model, Loader([two, one]), CPU)[0]


def best_epoch(scores: list[tuple[float, float]]) -> int:
    """The epoch whose checkpoint is kept after epochs of such (overall IoU, validation loss)."""
    progress = Progress()
    for epoch, (iou, loss) in enumerate(scores):
        metrics = {"oIoU": iou, "val_total": loss}
        if progress.is_best(metrics):
            progress.keep_as_best(epoch, metrics)
    return progress.best_epoch


@pytest.mark.parametrize(("scores", "expected"), [
    ([(20, 3), (30, 4), (25, 1)], 1),       # the overall IoU decides, whatever the loss
    ([(0.32, 5), (0, 4), (0, 3.5), (0, 3.6)], 2),  # below 1 % the loss does
    ([(0.32, 5), (0, 4), (1.5, 6), (0.9, 1)], 2),  # until an epoch is above
    ([(0, float("nan")), (0, 4), (0, float("nan"))], 1),
    ([(40, float("inf"))], 0)])
def test_the_best_checkpoint_has_the_largest_overall_iou_or_below_one_percent_the_lowest_loss(scores, expected):
    assert best_epoch(scores) == expected
    fuser_alone = Progress()
    for epoch, loss in enumerate([0.5, 0.3, 0.4]):
        if fuser_alone.is_best({"val_total": loss}):
            fuser_alone.keep_as_best(epoch, {"val_total": loss})
    assert fuser_alone.best_epoch == 1


def test_small_objects_are_named_with_their_pixels_and_what_helps():
    shares = np.array([0.004, 0.006, 0.007, 0.9, 0])  # an empty mask has no object
    assert small_objects(shares[:3], 96) == (
        "100 % of the objects cover less than 1 % of their image; the median one has 55 pixels of the networks' 96 x 96"
        ". Networks trained with the loss ce often predict no object at all on such data: train with seg_loss bce_area "
        "or dice, and with a larger img_size (416 gives the median object 1024 pixels)")
    assert "75 % of the objects" in small_objects(shares, 96)
    assert "seg_loss" not in small_objects(shares, 96, "dice")
    assert "img_size" not in small_objects(shares, 480)  # a small share, but enough pixels
    assert small_objects(np.array([0.02, 0.03, 0.001]), 96) == ""  # most are above 1 %
    assert small_objects(np.array([0, 0]), 96) == ""


def test_a_model_that_finds_nothing_is_named_with_what_helps():
    nothing, elsewhere, something = ([[0, 50, 0, 50, 9216]], [[0, 90, 40, 50, 9216]], [[1, 89, 40, 50, 9216]])
    assert "predicts no object at all" in on_finding_nothing(torch.tensor(nothing), "ce")
    assert "seg_loss bce_area or dice" in on_finding_nothing(torch.tensor(nothing), "ce")
    assert "seg_loss" not in on_finding_nothing(torch.tensor(nothing), "dice")
    assert "misses every object" in on_finding_nothing(torch.tensor(elsewhere), "ce")
    assert on_finding_nothing(torch.tensor(something), "ce") is None
    assert on_finding_nothing(torch.tensor([[0, 0, 0, 0, 9216]]), "ce") is None  # there is none to find
