"""Text in CSV cells that a spreadsheet program shall take for text, not for a formula."""
import re

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a cell that a spreadsheet program computes begins, after our own marks
MARKED = re.compile(r"'+[=+\-@\t\r]")


def as_cell(text: str) -> str:
    """`text` with a `'` in front if it begins like a formula; spreadsheet programs then show it as it is."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if MARKED.match(cell) else cell
