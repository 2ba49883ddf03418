"""Started by torchrun: one step's gradients by this process's share of six samples, written by rank 0 to a file."""
import atexit
import os
import sys

import torch
from conftest import arguments

from models import build_criterion, build_model
from utils import distributed
from utils.device import select_device

bert, seg_loss, path, *more = sys.argv[1:]
atexit.register(os.abort)  # a job that has succeeded must not fail in the teardown, as PyTorch does at times
device = select_device("cpu", distributed.local_rank())
distributed.start(device, 1)
torch.manual_seed(0)
args = arguments(swin_type="micro", prefusion_base_ch=4, ck_bert=bert, seg_loss=seg_loss, w_ssim_ir=0.2,
                 w_sobel_vis=0.3)
model = build_model(args).eval()
vis, ir = torch.randn(2, 6, 3, 64, 64)
target = torch.zeros(6, 64, 64, dtype=torch.int64)
for sample in range(6):
    target[sample, :8 * sample + 1] = 1  # objects of very different size: the cross-entropy weighs them
ids, mask = torch.randint(1, 50, (6, 20)), torch.ones(6, 20, dtype=torch.int64)

mine = slice(distributed.rank(), None, distributed.world_size())
criterion = build_criterion(args, distributed.mean if distributed.world_size() > 1 else None)
wrapped = distributed.wrap(model, device, bf16_gradients="bf16_gradients" in more)
loss, _ = criterion(wrapped(vis[mine], ir[mine], ids[mine], mask[mine]), vis[mine], ir[mine], target[mine])
loss.backward()
if distributed.rank() == 0:
    torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, path)
distributed.stop()
