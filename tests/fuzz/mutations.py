"""Random edits of bytes and of nested values, and smaller forms of an input that fails."""
import functools
import math
import random
import struct
from collections.abc import Iterator
from typing import Any

NESTING = 3000  # beyond Python's recursion limit
ODD_NUMBERS = (0, 1, -1, 2, 7, 255, 256, 32767, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -2**63, 10**7,
               10**400, 0.5, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf)
ODD_TEXTS = ("", " ", "\n", "\0", "a\0b", "\ud800", "\udcff", "é", "漢字", "\x1b[31mred\x1b[0m", "\u202e", "=1+1",
             "@x", "-", "--", "-1", "nan", "inf", "1e999", "9" * 400, "0x10", "١٢", "true", "null", "None", "[]", "{}",
             "../outside", "../../outside", "a/b", ".", "..", "~", "%s", "{}", "C:\\x", "x" * 300, "word " * 2000,
             "\ufeff", "cpu:00")
EDGES = [struct.pack(form, value) for form in ("<H", ">H", "<I", ">I", "<Q", ">Q")
         for value in (0, 1, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0xffffffff)
         if value < 256 ** struct.calcsize(form)]


def mutate(rng: random.Random, value: Any) -> Any:
    """A copy of `value` with one edit: of itself, or of something within it."""
    if isinstance(value, dict | list | tuple) and value and rng.random() < 0.8:  # go down
        if isinstance(value, dict):
            key = rng.choice(list(value))
            return {**value, key: mutate(rng, value[key])}
        place = rng.randrange(len(value))
        return type(value)([*value[:place], mutate(rng, value[place]), *value[place + 1:]])
    return odd(rng) if rng.random() < 0.15 else edited(value, rng)


def odd(rng: random.Random) -> Any:
    """A value that is seldom right."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(ODD_NUMBERS)
    if kind == 1:
        return rng.choice(ODD_TEXTS)
    if kind == 2:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}))
    if kind == 3:
        return functools.reduce(lambda inner, _: [inner], range(rng.choice((2, 20, NESTING))), [])
    return [rng.choice(ODD_NUMBERS) for _ in range(rng.choice((1, 2, 4, 1000)))]


@functools.singledispatch
def edited(_value, rng: random.Random) -> Any:
    """`value` with one edit that suits its type; modules register types of their own."""
    return odd(rng)


@edited.register
def _(value: dict, rng: random.Random) -> dict:
    items = list(value.items())
    place = rng.randrange(len(items)) if items else 0
    kind = rng.randrange(5)
    if not items or kind == 0:
        items.insert(place, (rng.choice(ODD_TEXTS), odd(rng)))
    elif kind == 1:
        del items[place]
    elif kind == 2:
        items[place] = (edited(items[place][0], rng), items[place][1])
    elif kind == 3:
        rng.shuffle(items)
    else:  # two values change places
        other = rng.randrange(len(items))
        (one, here), (two, there) = items[place], items[other]
        items[place], items[other] = (one, there), (two, here)
    return {key if key.__hash__ else str(key): item for key, item in items}


@edited.register
def _(value: list, rng: random.Random) -> list:
    value = list(value)
    place = rng.randrange(len(value)) if value else 0
    kind = rng.randrange(5)
    if not value or kind == 0:
        value.insert(place, odd(rng))
    elif kind == 1:
        del value[place]
    elif kind == 2:
        value.insert(place, value[place])
    elif kind == 3:
        rng.shuffle(value)
    else:
        value = value * rng.choice((2, 3, 100)) if len(value) < 100 else value[:place]
    return value


@edited.register
def _(value: tuple, rng: random.Random) -> tuple:
    return tuple(edited(list(value), rng))


@edited.register
def _(value: str, rng: random.Random) -> str:
    place = rng.randrange(len(value) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(ODD_TEXTS)
    if kind == 1:
        return value[:place] + rng.choice(ODD_TEXTS) + value[place:]
    if kind == 2:
        return value[:place]
    if kind == 3:
        return value[:place] + value[place + 1:]
    if kind == 4:
        return value[:place] + chr(rng.randrange(0x250)) + value[place + 1:]
    return value.swapcase() if rng.random() < 0.5 else value[:1000] * 2


@edited.register(int)
@edited.register(float)
def _(value, rng: random.Random) -> int | float | str:
    try:
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, float(value), str(value), [value],
                           rng.choice(ODD_NUMBERS)))
    except OverflowError:
        return rng.choice(ODD_NUMBERS)


@edited.register
def _(value: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(value) + 1)
    if rng.random() < 0.5:  # most formats begin with what decides
        place = min(place, rng.randrange(200))
    length = rng.choice((1, 1, 2, 4, 16, 256))
    kind = rng.randrange(8)
    before, here, after = value[:place], value[place:place + length], value[place + length:]
    if kind == 0:
        return before
    if kind == 1:
        here = b""
    elif kind == 2:
        here = rng.randbytes(length) + here
    elif kind == 3:
        here *= rng.choice((2, 3, 50))
    elif kind == 4:
        here = rng.choice(EDGES)
        after = value[place + len(here):]
    elif kind == 5 and here:
        here = bytes([here[0] ^ 1 << rng.randrange(8)]) + here[1:]
    elif kind == 6:
        other = rng.randrange(len(value) + 1)
        here = value[other:other + length]
    else:
        here = rng.randbytes(length)
    return before + here + after


def smaller(value: Any, depth: int = 20) -> Iterator[Any]:
    """Simpler forms of `value`, those that leave out most first; not of what is nested deeper than `depth`."""
    if not depth:
        return
    if isinstance(value, str | bytes | list | tuple):
        size = len(value)
        while size:
            for start in range(0, len(value), size):
                yield value[:start] + value[start + size:]
            size //= 2
    if isinstance(value, list | tuple):
        for place, item in enumerate(value):
            for form in smaller(item, depth - 1):
                yield type(value)([*value[:place], form, *value[place + 1:]])
    if isinstance(value, dict):
        keys, size = list(value), len(value)
        while size:
            for start in range(0, len(keys), size):
                yield {key: value[key] for key in keys[:start] + keys[start + size:]}
            size //= 2
        for key, item in value.items():
            for form in smaller(item, depth - 1):
                yield {**value, key: form}
