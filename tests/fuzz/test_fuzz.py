"""Random inputs end in a result or in one sentence, with a fixed seed; `make fuzz` tries more, with a new one."""
import os
import subprocess
import tempfile

import numpy as np
import pytest
from fuzz import make_input, prepare, shrink
from sandbox import BATCH, Target, outcomes
from targets import TARGETS

from data import decode
from utils.errors import InputError

SEED = 20


@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs_end_in_a_result_or_in_one_sentence(name):
    prepare()
    target = TARGETS[name]
    seeds = target.seeds()
    found = list(outcomes(target, lambda number: make_input(target, seeds, SEED, number), list(range(target.tried))))
    assert not [outcome for outcome in found if outcome.failed]
    assert len(found) == target.tried
    kinds = [outcome.kind for outcome in found]
    assert {"done", "refused"} <= set(kinds)  # neither all are harmless nor is everything refused at the door


def kind_of(call, **options) -> str:
    """What the sandbox says of a call."""
    target = Target("a call", list, edited, lambda value, folder: [lambda: call(folder)], 1, **options)
    outcome, = outcomes(target, lambda number: None, [0])
    return outcome.kind


def edited(_rng, value):
    return value


def write(path, text: str = "") -> None:
    path.write_text(text)


def say(text: str, stream: int = 2):
    return lambda folder: os.write(stream, text.encode())


@pytest.mark.parametrize(("call", "kind"), [
    (lambda folder: {}["x"], "KeyError"),
    (lambda folder: decode.read_mask(None), "TypeError"),
    (lambda folder: exec("raise SystemExit(3)"), "exit code 3"),
    (lambda folder: os.abort(), "SIGABRT"),
    (lambda folder: any(iter(int, 1)), "hang"),
    (lambda folder: np.ones(2**25), "memory beyond"),
    (lambda folder: subprocess.run(["true"], check=True), "starts the program true"),
    (lambda folder: write(folder / "x"), "writes to x"),
    (lambda folder: write(folder / "in/x"), "writes to in/x"),
    (lambda folder: os.remove(folder / "stderr"), "writes to stderr"),
    (lambda folder: tempfile.mkdtemp(), "a file outside the output folder"),
    (lambda folder: write(folder / "out/.x.tmp"), "a temporary file left"),
    (lambda folder: write(folder / "out/x.json", "{"), "an incomplete .json file"),
    (say("error: one\nerror: two\n"), "stderr: no single sentence"),
    (say("error: one\x1b[0m\n"), "control characters on stderr"),
    (say("a warning\n"), "stderr: a warning"),
    (say("\x1b[0m", stream=1), "control characters on stdout"),
    (lambda folder: raise_(InputError("two\nlines")), "stderr: no single sentence"),
    (lambda folder: raise_(InputError("one line")), "refused"),
    (lambda folder: raise_(ValueError("one line")), "ValueError"),
    (say("error: one\n"), "done"),
    (lambda folder: write(folder / "out/x.json", "{}"), "done"),
])
def test_the_sandbox_sees(call, kind):
    assert kind_of(call, seconds=1 if kind == "hang" else 20, megabytes=200).startswith(kind)


def raise_(error: Exception) -> None:
    raise error


def test_inputs_after_a_crash_are_tried_too():
    target = Target("a call", list, edited, lambda value, folder: [lambda: os.abort() if value % 3 == 1 else None], 1)
    numbers = list(range(BATCH + 10))
    found = list(outcomes(target, lambda number: number, numbers[-20:] + numbers[:5]))
    assert [outcome.number for outcome in found] == numbers[-20:] + numbers[:5]
    assert all(outcome.failed == (outcome.number % 3 == 1) for outcome in found)


def test_a_failing_input_is_made_small():
    target = Target("a call", list, edited, lambda value, folder: [lambda: b"x" in value.get("a", ()) and 1 / 0], 1)
    value = {"a": [b"1", b"2", b"x", b"3"] * 5, "b": {"c": "d"}}
    outcome, = outcomes(target, lambda number: value, [0])
    small = shrink(target, value, outcome.kind)
    assert small == {"a": [b"x"]}


def test_the_same_seed_gives_the_same_inputs():
    target = TARGETS["image"]
    seeds = target.seeds()
    first, again, other = ([make_input(target, seeds, seed, number) for number in range(50)] for seed in (1, 1, 2))
    assert first == again != other
