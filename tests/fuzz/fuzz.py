"""Try random inputs on everything that reads what others wrote; keep those that fail, made small.

    python tests/fuzz/fuzz.py [--minutes M] [--seed S] [--target NAME ...]
    python tests/fuzz/fuzz.py --again runs/fuzz/KIND/input.pickle

Exit code 1 if an input failed. What is right and wrong is said in `sandbox.py`.
"""
import argparse
import importlib
import itertools
import os
import pickle
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script: tests/
sys.path.insert(0, os.path.dirname(sys.path[0]))

import torch
from material import material
from mutations import NESTING, smaller
from sandbox import MISTAKE, Outcome, Target, outcomes
from targets import TARGETS

from utils.progress import progress_bar, say

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runs/fuzz"
ROUND = 4.0      # seconds that a target gets before the next one's turn
SHRINKING = 10.0  # seconds spent on making an input small


def make_input(target: Target, seeds: list, seed: int, number: int):
    """Input `number` of a target: the seeds as they are, then some with a few edits."""
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{seed} {target.name} {number}")
    value = rng.choice(seeds)
    for _ in range(1 + int(rng.expovariate(0.7))):
        value = target.mutate(rng, value)
    return value


def prepare() -> None:
    """Load what every child needs, so that a fork has it at once."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would warn of the forks
    for name in ("matplotlib.pyplot", "pandas", "transformers", "trainer", "evaluator"):
        importlib.import_module(name)
    material()


def shrink(target: Target, value, kind: str):
    """A form of `value` that still fails in the same way, with whatever can be left out left out."""
    deadline = time.monotonic() + SHRINKING
    better = True
    while better and time.monotonic() < deadline:
        better = False
        forms = list(itertools.islice(smaller(value), 2000))
        for outcome in outcomes(target, forms.__getitem__, list(range(len(forms)))):
            if outcome.kind == kind:
                value, better = forms[outcome.number], True
                break
            if time.monotonic() > deadline:
                break
    return value


def keep(target: Target, value, outcome: Outcome) -> Path:
    """Write an input that fails, in a folder named after the kind of failure."""
    folder = FOLDER / re.sub(r"\W+", "_", f"{target.name} {outcome.kind}")[:100]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "input.pickle"
    sys.setrecursionlimit(20 * NESTING)
    path.write_bytes(pickle.dumps((target.name, value)))
    shown = repr(value)[:2000]
    sys.setrecursionlimit(1000)
    (folder / "about.txt").write_text(
        f"{target.name}: {outcome.kind}\npython tests/fuzz/fuzz.py --again {path.relative_to(ROOT)}\n\n"
        f"{outcome.detail}\n\n{shown}\n", encoding="utf-8", errors="backslashreplace")
    return path


def fuzz(names: list[str], seed: int, minutes: float) -> dict[str, Counter]:
    """Try inputs of each target in turn until the time is up; return how often each kind of outcome came."""
    seeds = {name: TARGETS[name].seeds() for name in names}
    counts = {name: Counter() for name in names}
    following = dict.fromkeys(names, 0)
    end = time.monotonic() + 60 * minutes
    with progress_bar(unit=" inputs") as bar:
        for name in itertools.cycle(names):
            target = TARGETS[name]

            def make(number: int, target=target, name=name):
                return make_input(target, seeds[name], seed, number)

            turn = time.monotonic() + ROUND
            for outcome in outcomes(target, make, list(range(following[name], following[name] + 10**4))):
                following[name] = outcome.number + 1
                counts[name][outcome.kind] += 1
                bar.update()
                if outcome.kind == MISTAKE:
                    say(outcome.detail)
                elif outcome.failed and counts[name][outcome.kind] == 1:
                    value = shrink(target, make(outcome.number), outcome.kind)
                    say(f"{name}: {outcome.kind}\n  {keep(target, value, outcome).relative_to(ROOT)}")
                bar.set_postfix(target=name, failures=sum(map(failures, counts.values())), refresh=False)
                if time.monotonic() > turn:
                    break
            if time.monotonic() > end:
                return counts


def failures(count: Counter) -> int:
    return sum(number for kind, number in count.items() if Outcome(0, kind).failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--again", metavar="FILE", help="an input that failed before")
    args = parser.parse_args()
    prepare()
    if args.again:
        sys.setrecursionlimit(20 * NESTING)
        name, value = pickle.loads(Path(args.again).read_bytes())
        sys.setrecursionlimit(1000)
        outcome = next(outcomes(TARGETS[name], lambda _: value, [0]))
        print(f"{name}: {outcome.kind}\n{outcome.detail}")
        return int(outcome.failed)
    print(f"seed {args.seed}")
    counts = fuzz(args.target, args.seed, args.minutes)
    for name, count in counts.items():
        print(f"{name}: {count.total()} inputs, {failures(count)} failed")
        for kind, number in count.most_common():
            print(f"  {number:6} {kind}")
    return int(any(failures(count) for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
