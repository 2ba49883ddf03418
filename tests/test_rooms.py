"""Imports point one way, so that a reader of a room needs only those below it."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {  # what each room may import of the others
    "utils": set(),
    "bert": {"utils"},
    "data": {"bert", "utils"},
    "models": {"bert", "utils"},
    "training": {"models", "data", "bert", "utils"},
    "evaluation": {"models", "data", "bert", "utils"},
    "exporting": {"evaluation", "models", "data", "bert", "utils"},
    "engine.py": {"evaluation", "training", "models", "data", "bert", "utils"},
    "predictor.py": {"evaluation", "models", "data", "bert", "utils"},
    "page": {"predictor", "evaluation", "data", "utils"},
}
OURS = {name.removesuffix(".py") for name in BELOW} | {
    "trainer", "evaluator", "pair_runner", "train_with_lavt", "test", "predict", "export", "app"}


def modules(room: str) -> list[Path]:
    return [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))


def imports(path: Path):
    """(module, names) of each import of our own modules, relative ones spelled out."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, node.module or ""]).strip("."), [alias.name for alias in node.names]


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_the_rooms_below_it(room):
    for path in modules(room):
        for module, _ in imports(path):
            first = module.split(".")[0]
            if first in OURS and first != room.removesuffix(".py"):
                assert first in BELOW[room], f"{path.relative_to(ROOT)} imports {module}"


def test_the_networks_do_not_know_what_makes_them_fast():
    for path in (ROOT / "models").glob("*.py"):
        assert not any("fast" in [*module.split("."), *names] for module, names in imports(path)), path.name


def test_only_bert_touches_transformers():
    for room in BELOW:
        if room != "bert":
            for path in modules(room):
                assert not any(module.split(".")[0] == "transformers" for module, _ in imports(path)), path


@pytest.mark.parametrize("room", BELOW)
def test_no_module_imports_private_names_of_another(room):
    for path in modules(room):
        for module, names in imports(path):
            if module.split(".")[0] in OURS:
                assert not any(name.startswith("_") and name != "__version__" for name in names), (path, module, names)
