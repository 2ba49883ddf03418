"""All that a run needs besides its weights in order to go on as if nothing had happened."""
import torch

from utils import distributed
from utils.device import random_state, set_random_state
from utils.errors import InputError
from utils.text import counted

# May differ when a run goes on: where it computes and what it writes, not what it computes.
FREE = {"resume", "workers", "pin_mem", "device", "print_freq", "output_dir", "eval_vis_dir", "model_id", "keep",
        "save_every_minutes", "dist_timeout", "eval_only", "max_bad_steps"}


def pack(progress: dict, optimizer, scaler, device: torch.device, rows: int, weights: dict | None = None) -> dict:
    """The state as plain values and tensors; all processes must call it together.

    Args:
        progress: `engine.Progress` as a dict.
        rows: of the training set.
        weights: state dict of the model in training, where the checkpoint proper holds averaged ones.
    """
    state = {"progress": progress, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
             "random": distributed.gather(random_state(device)), "rows": rows}
    return state if weights is None else state | {"weights": weights}


def unpack(content: dict, path: str) -> dict:
    """The state in a checkpoint.

    Raises:
        InputError: it has none.
    """
    state = content.get("training")
    if not isinstance(state, dict) or not {"progress", "optimizer", "scaler", "random", "rows"} <= state.keys():
        raise InputError(f"{path} holds weights but no state of a training run, as last.pth does; to start a "
                         "new run from them, name it with --ck_prefusion for its fuser")
    return state


def restore_optimizer(optimizer, state: dict, path: str) -> None:
    """Fill in the optimizer's moments; learning rates and weight decays stay those of the command line.

    Raises:
        InputError: the state belongs to other parameters.
    """
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    same = len(options) == len(state["param_groups"]) and all(
        now["amsgrad"] == then["amsgrad"] for now, then in zip(options, state["param_groups"], strict=True))
    try:
        if not same:
            raise ValueError
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise InputError(f"the optimizer in {path} trained other parameters; --amsgrad and the flags that "
                         "freeze parts must be as in that run") from error
    for group, option in zip(optimizer.param_groups, options, strict=True):
        group.update(option)


def restore_random(states: list[dict], device: torch.device) -> list[str]:
    """Put this process's generators back to where they were; what cannot be, in words."""
    if len(states) == distributed.world_size():
        set_random_state(states[distributed.rank()], device)
        return []
    return [f"the job has {counted(distributed.world_size(), 'process', 'processes')}, it had {len(states)}; dropout "
            "draws other numbers"]


def changed_settings(then: dict, now: dict, rows_then: int, rows_now: int) -> list[str]:
    """What of the command line and the data is not as it was, in words; flags in FREE are not looked at."""
    changes = [f"{name} is {value!r}, it was {then[name]!r}" for name, value in now.items()
               if name not in FREE and name in then and then[name] != value]
    if rows_then != rows_now:
        changes.append(f"the training set has {counted(rows_now, 'row')}, it had {rows_then}; what is left of the "
                       "epoch is drawn from a new order")
    return changes
