"""Started by torchrun: the bytes that one process's steps hand to collectives, written by rank 0 to a JSON file."""
import atexit
import json
import os
import sys
from types import SimpleNamespace

import torch
from conftest import arguments
from torch.utils._python_dispatch import TorchDispatchMode

from engine import Progress, train_one_epoch
from models import build_criterion, build_model
from training.optimizer import build_optimizer, trained_networks
from utils import distributed
from utils.device import grad_scaler, select_device

bert, accum, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STEPS = 2


class Sent(TorchDispatchMode):
    """Notes each collective's name and the bytes of the tensors that it is given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.sizes.append((function._schema.name.removeprefix("c10d::"), sum(tensor.nbytes for tensor in args[0])))
        return function(*args, **(kwargs or {}))


atexit.register(os.abort)  # a job that has succeeded must not fail in the teardown, as PyTorch does at times
device = select_device("cpu", distributed.local_rank())
distributed.start(device, 1)
torch.manual_seed(0)
args = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=bert)
model = build_model(args)
wrapped = distributed.wrap(model, device)
vis, ir = torch.randn(2, 2, 3, 64, 64)
batch = {"vis": vis, "ir": ir, "input_ids": torch.randint(1, 50, (2, 20)),
         "attention_mask": torch.ones(2, 20, dtype=torch.int64), "target": torch.randint(0, 2, (2, 64, 64)),
         "row": torch.arange(2)}
optimizer = build_optimizer(model, device, lr_seg=1e-4, lr_pf=1e-4, wd_seg=0.0, wd_pf=0.0)
scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def train() -> None:
    train_one_epoch(wrapped, build_criterion(args, distributed.mean), [batch] * (STEPS * accum), optimizer, scheduler,
                    grad_scaler(device, None), device, Progress(), SimpleNamespace(due=lambda: 0),
                    networks=trained_networks(model), accum=accum)


train()  # in its second step DistributedDataParallel forms its buckets anew; it would fail if a parameter were unused
sent = Sent()
with sent:
    train()
if distributed.rank() == 0:
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"steps": STEPS, "gradients": gradients, "sent": sent.sizes}, file)
distributed.stop()
