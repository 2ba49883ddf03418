"""Tables of figures, for a terminal and for Markdown."""


def written(cell) -> str:
    """A number as short as it is useful, anything else as it is."""
    return str(cell) if not isinstance(cell, float) else f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def print_table(title: str, head: list[str], rows: list[list]) -> None:
    """Columns as wide as their content, numbers to the right."""
    cells = [head, *([written(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths, strict=True))))


def markdown_table(head: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([written(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
