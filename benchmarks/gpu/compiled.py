"""Whether a compiled training step computes what the plain one does."""
from bench_train import Ours

from .right import compare_steps, one_step, without_dropout


def same_numbers(bench) -> None:
    """The row, at the sizes of make demo, which compile faster."""
    bench.shape, bench.side = "demo", 96
    bench.row("--torchcompile gives the same numbers", lambda: _compare(bench))


def _compare(bench) -> dict[str, float]:
    found = []
    for torchcompile in (False, True):
        model = bench.model()
        without_dropout(model)
        found.append(one_step(Ours(bench.args(4), bench.device, model=model, torchcompile=torchcompile)))
    return compare_steps(*found)
