"""Files of weights for tests, and how state dicts are compared."""
import os

import torch


class Harmful:
    """Unpickling this would create a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def swin_file(backbone: dict, path) -> str:
    """Dress up a backbone as Swin's ImageNet file: no fusion, but a head and masks."""
    weights = {key: tensor for key, tensor in backbone.items()
               if not any(part in key for part in ("fusion", "res_gate", "norm0", "norm3"))}
    weights |= {"norm.weight": torch.ones(256), "head.weight": torch.ones(1000, 256),
                "layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49)}
    torch.save({"model": weights}, path)
    return str(path)
