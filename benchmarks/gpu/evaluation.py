"""How fast pairs are fused and segmented."""
import functools
import time

import torch
from bench_infer import Way, sentences

from .prediction import from_file_to_file

LARGE, TINY_LARGE = 32, 4  # batch


def eager(bench) -> None:
    """The rows that are not compiled."""
    for precision, way in (("bf16", "amp"), ("float32", "default")):
        bench.row(f"{precision}, batch 1", functools.partial(_passes, bench, way, 1))
        bench.row(f"{precision}, batch 32", functools.partial(_passes, bench, way, _large(bench)))
        bench.row(f"{precision}, sentences about a pair", functools.partial(_sentences, bench, way))
    from_file_to_file(bench)


def compiled_1(bench) -> None:
    """Compiled, on a GPU with CUDA graphs; a pair at a time."""
    bench.row("bf16, compiled with CUDA graphs, batch 1", lambda: _passes(bench, "amp+torchcompile", 1))


def compiled_32(bench) -> None:
    """The same for a large batch."""
    bench.row("bf16, compiled with CUDA graphs, batch 32", lambda: _passes(bench, "amp+torchcompile", _large(bench)))


def _large(bench) -> int:
    return TINY_LARGE if bench.tiny else LARGE


def _make(bench, way: str, size: int) -> Way:
    return Way(way, bench.args(size), bench.device, bench.model())


def _passes(bench, way: str, size: int) -> dict:
    start = time.perf_counter()
    made, size = bench.fitting(lambda size: _make(bench, way, size), size)
    return {"batch": size, "px": bench.side, "first passes, s": time.perf_counter() - start,
            **bench.speed(made.run, size, size * bench.forward_flops())}


def _sentences(bench, way: str) -> dict:
    made = _make(bench, way, 1)
    made.run(2)
    with torch.inference_mode():
        found = sentences(made, bench.device, 4 * bench.rounds)
    return {"px": bench.side, "first sentence, ms": found["first"], "one more, ms": found["one more"]}
