"""Whether a resumed run gives the same bits as one that was not stopped, and which flag that needs."""
import os
import warnings
from dataclasses import asdict

import torch
from bench_train import Ours

from training import state as training_state
from utils import checkpoint

from .child import Wrong, why
from .right import seeded

BATCH, ROWS = 2, 4


def by_default(bench) -> None:
    """Without any flag, and with cuDNN's."""
    bench.row("resume, PyTorch's defaults", lambda: _same_bits(bench, needed=False))
    torch.backends.cudnn.deterministic = True
    bench.row("resume, cudnn.deterministic", lambda: _same_bits(bench, needed=False))


def deterministic(bench) -> None:
    """With all of PyTorch's flags; the process has CUBLAS_WORKSPACE_CONFIG."""
    torch.backends.cudnn.deterministic = True
    bench.row("resume, deterministic algorithms", lambda: _with_deterministic_algorithms(bench))


def _with_deterministic_algorithms(bench) -> dict:
    torch.use_deterministic_algorithms(True)
    try:
        return {**_same_bits(bench, needed=True), "without a deterministic kernel": "none"}
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        first = why(error)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figures = _same_bits(bench, needed=False)
    names = {str(warning.message).split(" does not have")[0] for warning in caught
             if "deterministic" in str(warning.message)}
    return {**figures, "without a deterministic kernel": ", ".join(sorted(names)) or first}


def _same_bits(bench, needed: bool) -> dict:
    """Two steps; the same again; and the same with a checkpoint and a new start between them.

    Raises:
        Wrong: the two straight runs agree and the resumed one does not; or, where it is `needed`, any differ.
    """
    straight, again = (_tensors(_trained(bench, 2)) for _ in range(2))
    resumed = _tensors(_resumed(bench))
    repeats, resumes = _different(straight, again), _different(straight, resumed)
    figures = {"tensors": len(straight), "different when repeated": repeats, "different when resumed": resumes}
    if resumes and not repeats:
        raise Wrong("a run repeats bit by bit, but not after resuming", figures)
    if needed and repeats:
        raise Wrong("a run does not repeat bit by bit", figures)
    return figures


def _trained(bench, steps: int) -> Ours:
    way = seeded(bench, BATCH)
    way.run(steps)
    return way


def _resumed(bench) -> Ours:
    path = os.path.join(bench.scratch, "resumed.pth")
    way = seeded(bench, BATCH)
    progress = way.train_on([way.batch])
    state = training_state.pack(asdict(progress), way.optimizer, way.scaler, bench.device, ROWS)
    checkpoint.save(checkpoint.pack(way.model, 0, {}, training=state), path)
    del way, state
    bench.free()
    content = checkpoint.read(path)
    os.remove(path)
    way = Ours(bench.args(BATCH), bench.device, model=bench.model())
    checkpoint.load_parts(way.model, content, path)
    state = training_state.unpack(content, path)
    training_state.restore(state, way.optimizer, way.scaler, path)
    training_state.restore_random(state["random"], bench.device, path)
    way.run()
    return way


def _tensors(way: Ours) -> list[torch.Tensor]:
    """Weights, statistics and moments, on the CPU."""
    moments = [value for values in way.optimizer.state_dict()["state"].values() for value in values.values()]
    return [tensor.detach().cpu().clone() for tensor in (*way.model.state_dict().values(), *moments)]


def _different(one: list[torch.Tensor], other: list[torch.Tensor]) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
