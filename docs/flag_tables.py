"""Write the flag tables of docs/*.md from the scripts' own parsers.

    python docs/flag_tables.py            # rewrite the tables
    python docs/flag_tables.py --check    # change nothing; name the documents whose tables differ, exit code 1

A table stands between the lines `<!-- flags: SCRIPT -->` and `<!-- end of flags -->`.
"""
import argparse
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECTION = re.compile(r"(<!-- flags: (\S+) -->\n).*?(<!-- end of flags -->)", re.DOTALL)
DEFAULT = re.compile(r" ?\(default: (.*?)\)$")  # at the end of a help text: the default in words
UNTITLED = {"positional arguments", "options"}  # argparse's own groups


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser of a script, given by its path from the project's folder."""
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).build_parser()


def render(parser: argparse.ArgumentParser) -> str:
    """Markdown tables of all arguments of `parser`, one table for each argument group.

    argparse has no public way to list groups and arguments, hence the private attributes.
    """
    tables, rows = [], []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions
                   if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS]
        if not actions:
            continue
        if group.title not in UNTITLED:
            tables.append(table(rows))
            tables.append(f"**{group.title[0].upper()}{group.title[1:]}**")
            rows = []
        rows += [row(action) for action in actions]
    tables.append(table(rows))
    return "\n\n".join(filter(None, tables))


def table(rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table of flags; empty if there are no rows."""
    lines = ["flag | default | meaning", "--- | --- | ---"] + [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) if rows else ""


def row(action: argparse.Action) -> tuple[str, str, str]:
    """Flag, default and meaning of one argument. A default that the help text words is taken from there.

    So the tables are the same on all machines, though a default may depend on the number of cores.
    """
    found = DEFAULT.search(action.help)
    meaning = DEFAULT.sub("", action.help) % vars(action)
    worded = found.group(1) if found and "%(" not in found.group(1) else None
    if worded:
        default = worded
    elif action.required:
        default = "required"
    elif action.const is True:
        default = "off"
    elif action.default is None or action.default == []:
        default = "none"
    else:
        default = f"`{action.default}`" if action.default != "" else '`""`'
    return tuple(cell.replace("|", r"\|") for cell in (name(action), default, meaning))


def name(action: argparse.Action) -> str:
    """All names of an argument with its choices, or the metavar of a positional argument."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    choices = f" {{{','.join(action.choices)}}}" if action.choices else ""
    return ", ".join(f"`{flag}`" for flag in action.option_strings[:-1]) + (
        ", " if len(action.option_strings) > 1 else "") + f"`{action.option_strings[-1]}{choices}`"


def updated(text: str) -> str:
    """A document with its flag tables as the parsers have them now."""
    return SECTION.sub(lambda match: f"{match[1]}\n{render(parser_of(match[2]))}\n\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if a table differs")
    args = parser.parse_args()
    outdated = 0
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if updated(text) != text:
            outdated += 1
            status = "outdated; run python docs/flag_tables.py" if args.check else "rewritten"
            print(f"{path.relative_to(ROOT)}: {status}")
            if not args.check:
                path.write_text(updated(text), encoding="utf-8")
    return 1 if args.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
