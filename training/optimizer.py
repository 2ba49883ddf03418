"""AdamW with a learning rate and a weight decay for each part of the model, and the published decay of the rates."""
import torch
from torch import nn

from utils.device import has_fused_optimizers

POWER = 0.9  # of the polynomial decay


def build_optimizer(model: nn.Module, device: torch.device, *, lr_seg: float, wd_seg: float, lr_pf: float, wd_pf: float,
                    amsgrad: bool = False) -> torch.optim.AdamW:
    """AdamW with two parameter groups: LAVT and BERT first, then the fuser.

    Args:
        model: a `models.RISFusion`; parameters without `requires_grad` in LAVT and BERT are left out.
        device: where it trains.
        lr_seg, wd_seg: learning rate and weight decay of LAVT and BERT.
        lr_pf, wd_pf: those of the fuser.
        amsgrad: AdamW's AMSGrad variant.
    """
    networks = model.networks()
    lavt_and_bert = [p for name in ("segmenter", "text_encoder") if name in networks
                     for p in networks[name].parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": lavt_and_bert, "lr": lr_seg, "initial_lr": lr_seg, "weight_decay": wd_seg},
         {"params": list(model.fuser.parameters()), "lr": lr_pf, "initial_lr": lr_pf, "weight_decay": wd_pf}],
        amsgrad=amsgrad, fused=has_fused_optimizers(device))


def polynomial_decay(optimizer: torch.optim.Optimizer, total_steps: int, steps_done: int = 0
                     ) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler that multiplies the initial learning rates by (1 − step / total_steps)^0.9, step by step.

    Args:
        optimizer: from `build_optimizer`.
        total_steps: of the whole run.
        steps_done: in the run so far, when it is resumed.
    """
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(1 - step / total_steps, 0) ** POWER, last_epoch=steps_done - 1)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What the optimizer of `build_optimizer` uses in its next step: `lr_seg` and `lr_pf`."""
    return dict(zip(("lr_seg", "lr_pf"), (group["lr"] for group in optimizer.param_groups), strict=True))


def trained_networks(model: nn.Module) -> dict[str, nn.Module]:
    """The networks of a `models.RISFusion` that have parameters to train, by name."""
    return {name: network for name, network in model.networks().items()
            if any(p.requires_grad for p in network.parameters())}
