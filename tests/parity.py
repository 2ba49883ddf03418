"""Weights and inputs that depend on nothing but tensor names, for comparing with the figures in tests/figures/.

`golden.json` holds summaries of what the authors' implementation of RIS-FUSION computed from them in float32 on a CPU;
`checkpoint_keys.json` the keys, dtypes and shapes of the released checkpoint, `{0..n}` standing for an index.
"""
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

FIGURES = Path(__file__).parent / "figures"


def golden() -> dict:
    return json.loads((FIGURES / "golden.json").read_text())


def checkpoint_keys() -> dict:
    """{network: {key: [dtype, *shape]}} of the released checkpoint."""
    networks = json.loads((FIGURES / "checkpoint_keys.json").read_text())
    return {network: {key: entry for pattern, entry in keys.items() for key in _expand(pattern)}
            for network, keys in networks.items()}


def _expand(pattern: str) -> list[str]:
    match = re.search(r"\{0\.\.(\d+)\}", pattern)
    return [pattern.replace(match[0], str(i)) for i in range(int(match[1]) + 1)] if match else [pattern]


def _values(name: str, shape) -> np.ndarray:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("running_var"):
        z = 1.0 + 0.1 * np.abs(z)
    elif name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("relative_position_bias_table"):
        z = 0.2 * z
    elif "embeddings." in name and len(shape) == 2:
        z = 0.05 * z
    elif len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        z = 1.0 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


@torch.no_grad()
def fill_(module: torch.nn.Module) -> None:
    """Overwrite all weights and statistics of `module`, except the fuser's standardisation constants."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and name not in ("mean_vis", "std_vis", "mean_ir", "std_ir"):
            tensor.copy_(torch.from_numpy(_values(name, tensor.shape)))


def inputs(height: int, width: int, batch: int = 2, tokens: int = 20, vocab: int = 1000) -> dict[str, torch.Tensor]:
    """A batch: waves with noise, their crests the object, and a last sentence of only 7 tokens."""
    rng = np.random.default_rng(20250916)
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    yy, xx = np.mgrid[0:height, 0:width]
    waves = [np.sin(xx / (3.0 + i) + i) * np.cos(yy / (5.0 + 2 * i) - i) for i in range(batch)]
    vis = np.stack([np.stack([0.5 + 0.4 * wave * (0.6 + 0.2 * c) for c in range(3)]) for wave in waves])
    ir = np.stack([np.repeat((0.5 - 0.45 * wave)[None], 3, 0) for wave in waves])
    vis = np.clip(vis + 0.05 * rng.standard_normal(vis.shape), 0, 1)
    ir = np.clip(ir + 0.05 * rng.standard_normal((batch, 1, height, width)), 0, 1)
    target = np.stack([(wave > 0.55) for wave in waves]).astype(np.int64)
    ids = rng.integers(5, vocab, size=(batch, tokens))
    attention = np.ones((batch, tokens), dtype=np.int64)
    attention[-1, 7:] = 0
    return {"vis": torch.from_numpy(((vis - mean) / std).astype(np.float32)),
            "ir": torch.from_numpy(((ir - mean) / std).astype(np.float32)),
            "target": torch.from_numpy(target),
            "input_ids": torch.from_numpy(ids * attention),
            "attention_mask": torch.from_numpy(attention)}
