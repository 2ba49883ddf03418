"""Everything besides the weights that an interrupted run needs in order to continue as if it had not stopped."""
import zipfile

import torch

from utils import distributed
from utils.device import random_state, set_random_state
from utils.errors import InputError, naming
from utils.numeric import is_finite
from utils.text import counted

from .progress import Progress

# These may differ when a run is resumed: they say where it computes and what it writes, not what it computes. Another
# attention window shows in the tensors, which then do not fit.
FREE = {"resume", "workers", "pin_mem", "device", "print_freq", "output_dir", "eval_vis_dir", "model_id", "keep",
        "save_every_minutes", "dist_timeout", "eval_only", "max_bad_steps", "window12", "cache_dir",
        "remove_cache"}
ENTRIES = {"progress": dict, "optimizer": dict, "scaler": dict, "random": list, "rows": int}
WRONG_CONTENT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def pack(progress: dict, optimizer, scaler, device: torch.device, rows: int, weights: dict | None = None) -> dict:
    """The state as plain values and tensors; all processes must call it together.

    Args:
        progress: `training.progress.Progress` as a dict.
        rows: of the training set.
        weights: state dicts of the model in training, where those of the checkpoint are averaged ones.
    """
    state = {"progress": progress, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
             "random": distributed.gather(random_state(device)), "rows": rows}
    return state if weights is None else state | {"weights": weights}


def unpack(content: dict, path: str) -> dict | None:
    """The state in a checkpoint, with `progress` as a `Progress`; None if the checkpoint holds weights alone.

    Raises:
        InputError: the state has not the form that `pack` gives it.
    """
    state = content.get("training")
    if state is None:
        return None
    if not isinstance(state, dict):
        raise InputError(f"{path}: the training state is a {type(state).__name__}; it is not of this program", "resume")
    for name, kind in (ENTRIES | ({"weights": dict} if "weights" in state else {})).items():
        if not isinstance(state.get(name), kind):
            raise InputError(f"{path}: {name!r} in the training state is not a {kind.__name__}; it is damaged or not "
                             "of this program", "resume")
    try:
        return state | {"progress": Progress.from_values(state["progress"])}
    except ValueError as error:
        raise InputError(f"{path}: {error} in the training state; it is damaged or not of this program", "resume"
                         ) from error


def check_intact(path: str) -> None:
    """Compare all tensors of a file with the checksums (CRC-32) that `torch.save` writes; `torch.load` does not.

    Only for files of this program: others may have switched the checksums off.

    Raises:
        InputError: one differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged headers fail in many ways
        raise InputError(f"{path} is damaged ({error})", "resume") from error
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} in it does not match; take an earlier file",
                         "resume")


def restore(state: dict, optimizer, scaler, path: str) -> None:
    """Fill optimizer and gradient scaler from a state.

    Raises:
        InputError: what it holds for them belongs to other parameters or is damaged.
    """
    with naming("resume"):
        restore_optimizer(optimizer, state["optimizer"], path)
        restore_scaler(scaler, state["scaler"], path)


def restore_optimizer(optimizer, state: dict, path: str) -> None:
    """Fill in the optimizer's moments; learning rates and weight decays stay those of the new command line.

    Raises:
        InputError: the state belongs to other parameters or is damaged.
    """
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        for now, then in zip(options, state["param_groups"], strict=True):
            if now["amsgrad"] != then["amsgrad"]:
                raise ValueError("amsgrad differs")
        _check_moments(optimizer, state)
        optimizer.load_state_dict(state)
    except WRONG_CONTENT as error:
        raise InputError(f"the optimizer in {path} trained other parameters, or is damaged ({error}); AMSGrad and the "
                         "frozen parts must be as in that run") from error
    for group, option in zip(optimizer.param_groups, options, strict=True):
        group.update(option)


def _check_moments(optimizer, state: dict) -> None:
    """Compare shapes, which `load_state_dict` does not."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        moments = state["state"].get(number, {})
        for name, value in moments.items():
            if value.shape != (() if name == "step" else parameter.shape):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
        if moments and not {"step", "exp_avg", "exp_avg_sq"} <= moments.keys():
            raise ValueError(f"there are only {', '.join(map(str, moments))}")


def restore_scaler(scaler, state: dict, path: str) -> None:
    """Fill in the gradient scaler.

    Raises:
        InputError: the state is not a scaler's.
    """
    if state.keys() != scaler.state_dict().keys() or not all(
            is_finite(value) and value >= 0 for value in state.values()):
        raise InputError(f"{path}: 'scaler' in the training state is not that of a gradient scaler; it is damaged or "
                         "not of this program")
    scaler.load_state_dict(state)


def restore_random(states: list[dict], device: torch.device, path: str) -> list[str]:
    """Set this process's random generators as they were; return what cannot be restored, in words.

    Raises:
        InputError: the states are not those of random generators.
    """
    if len(states) != distributed.world_size():
        return [f"the job has {counted(distributed.world_size(), 'process', 'processes')}, it had {len(states)}; "
                "dropout draws other numbers"]
    try:
        set_random_state(states[distributed.rank()], device)
    except WRONG_CONTENT as error:
        raise InputError(f"{path}: 'random' in the training state is not that of random generators ({error}); it is "
                         "damaged or not of this program", "resume") from error
    return []


def changed_settings(then: dict, now: dict, rows_then: int, rows_now: int) -> list[str]:
    """What of the settings and the data differs from the run that is resumed, in words; names in FREE are left out."""
    changes = [f"{name} is {value!r}, it was {then[name]!r}" for name, value in now.items()
               if name not in FREE and name in then and then[name] != value]
    if rows_then != rows_now:
        changes.append(f"the training set has {counted(rows_now, 'row')}, it had {rows_then}; the rest of the epoch is "
                       "drawn from a new order")
    return changes
