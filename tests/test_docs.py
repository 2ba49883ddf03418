"""The documents name only flags and files that exist, and their flag tables are those of the parsers."""
import re
from pathlib import Path

import pytest

from docs.flag_tables import SECTION, parser_of, updated

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCUMENTS]
SCRIPTS = ["train_with_lavt.py", "test.py", "predict.py", "app.py", "compare.py", "export.py", "evaluation/fusion.py",
           "data/synthetic.py", "data/merge_parquet.py", "data/align.py", "data/build_parquet.py", "data/add_fused.py",
           "data/check_parquet.py", "utils/fetch_weights.py", "utils/plot_log.py"]
OTHER_PROGRAMS = {  # torchrun, pip, tensorboard, Slurm, Docker
    "--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--index-url", "--logdir", "--nodes",
    "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--signal", "--requeue", "--open-mode",
    "--shm-size"}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def known_flags() -> set[str]:
    """All long flags of the project's scripts and benchmarks, `-` written as `_`."""
    flags = {flag for name in SCRIPTS for flag in parser_of(name)._option_string_actions if flag.startswith("--")}
    for path in [ROOT / "docs" / "flag_tables.py", *(ROOT / "benchmarks").glob("*.py")]:
        flags |= set(re.findall(r'add_argument\("(--[\w-]+)"', path.read_text(encoding="utf-8")))
    return {flag.replace("-", "_") for flag in flags | OTHER_PROGRAMS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=page_id)
def test_flag_tables_are_those_of_the_parsers(path):
    text = path.read_text(encoding="utf-8")
    assert updated(text) == text, "run python docs/flag_tables.py"


def test_every_script_has_a_flag_table():
    documented = [name for path in DOCUMENTS for _, name, _ in SECTION.findall(path.read_text(encoding="utf-8"))]
    assert sorted(documented) == sorted(SCRIPTS)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_flag_in_a_document_exists(path):
    mentioned = re.findall(r"(?<![\w-])--[a-z][\w-]*\w", path.read_text(encoding="utf-8"))
    assert {flag.replace("-", "_") for flag in mentioned} - known_flags() == set()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_and_pictures_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_readme_is_short_and_leads_to_every_document():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    for path in DOCUMENTS:
        assert f"]({page_id(path)})" in text
