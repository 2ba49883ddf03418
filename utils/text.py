"""Words for people: counts with their nouns, and text of unknown origin made safe to print."""

LONGEST = 200  # characters of a name, key or sentence from a file that a message shows
LONGEST_LINE = 10_000  # characters of a line of a message


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 epoch`, `2 epochs`; `plural` where an s behind the noun will not do."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a final full stop; its type's name if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def listed(names: list[str], most: int = 10) -> str:
    """The names as they may be printed, with commas between them; after `most`, how many more there are."""
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def printable(text: object, longest: int = LONGEST) -> str:
    r"""`text` as it may be printed in a terminal: on one line, without escape sequences, and not too long.

    Args:
        text: anything; what is no str is converted.
        longest: in characters; what exceeds it is replaced by an ellipsis.
    Returns:
        The text with what is not printable (control characters, lone surrogates) escaped, as in `\x1b`.
    """
    try:
        text = str(text)
    except (ValueError, RecursionError):  # an int of more than 4300 digits; a list in a list in a list
        text = f"a very large {type(text).__name__}"
    cut = text[:longest] + "…" * (len(text) > longest)
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
                   for character in cut)


def printable_value(value: object, longest: int = LONGEST) -> str:
    """A value as in Python code, text in quotes, and as `printable`."""
    return f"'{printable(value, longest)}'" if isinstance(value, str) else printable(value, longest)


def printable_lines(text: str) -> str:
    """Several lines as they may be printed in a terminal, each as `printable` gives it, but up to LONGEST_LINE."""
    return "\n".join(printable(line, LONGEST_LINE) for line in text.split("\n"))
