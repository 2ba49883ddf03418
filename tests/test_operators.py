"""What a training step launches beside the networks, counted at the published depths."""
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def count_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        from count_operators import count_step
        yield count_step


def test_bookkeeping_is_at_most_two_percent_of_a_steps_operators(count_step):
    """Statistics kept and put back, gradient norms, loss terms, and what skips steps that are not finite."""
    count = count_step("readme")
    assert count.by_part.keys() == {"bookkeeping", "forward", "losses", "backward", "optimizer"}
    assert count.total("bookkeeping") <= 50
    assert count.total("bookkeeping") <= 0.02 * count.total()
    assert count.total("optimizer") <= 10  # three for each of two groups, not some for each tensor


def test_bookkeeping_does_not_grow_with_the_networks(count_step):
    assert count_step("demo").total("bookkeeping") <= 50


def test_an_accumulated_batch_adds_few_operators_of_bookkeeping(count_step):
    one, three = (count_step("demo", accum=accum).total("bookkeeping") for accum in (1, 3))
    assert three - one <= 2 * 10
