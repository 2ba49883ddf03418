"""The figures in tests/figures/ that are about checkpoints; those of the networks are read by benchmarks/reference.py.

`checkpoint_keys.json` holds the keys, dtypes and shapes of the released checkpoint, `{0..n}` standing for an index.
"""
import json
import re
from pathlib import Path

FIGURES = Path(__file__).parent / "figures"


def checkpoint_keys() -> dict:
    """{network: {key: [dtype, *shape]}} of the released checkpoint."""
    networks = json.loads((FIGURES / "checkpoint_keys.json").read_text())
    return {network: {key: entry for pattern, entry in keys.items() for key in _expand(pattern)}
            for network, keys in networks.items()}


def _expand(pattern: str) -> list[str]:
    match = re.search(r"\{0\.\.(\d+)\}", pattern)
    return [pattern.replace(match[0], str(i)) for i in range(int(match[1]) + 1)] if match else [pattern]
