"""Words for people."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 epoch`, `2 epochs`; `plural` where an s behind the noun will not do."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
