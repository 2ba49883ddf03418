"""Parts of a data set that have no image in common."""
from collections.abc import Iterable

import numpy as np

from utils.errors import UsageError
from utils.text import counted


def split_by_image(images: Iterable[tuple[str, list[bytes]]], shares: list[float], seed: int) -> dict[str, int]:
    """Deal images out to parts; names that have a content in common get the same part.

    Args:
        images: name and digests of what has this name, visible and infrared; a name may come several times. The order
            does not matter.
        shares: of the parts, adding up to 1; a part with a share above 0 gets at least one image.
    Returns:
        name to number of its part.
    Raises:
        UsageError: there are too few images.
    """
    owner: dict[bytes, str] = {}  # of a content: the first name that has it
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name, digests in images:
        leader.setdefault(name, name)
        for digest in digests:
            first, second = sorted((lead(name), lead(owner.setdefault(digest, name))))
            leader[second] = first
    leaders = sorted(name for name in leader if leader[name] == name)
    counts = [max(1, round(len(leaders) * share)) if share else 0 for share in shares]
    largest = max(range(len(shares)), key=lambda part: shares[part])
    counts[largest] += len(leaders) - sum(counts)
    if counts[largest] < 1:
        raise UsageError(f"{counted(len(leaders), 'different image')} cannot make up "
                         f"{sum(share > 0 for share in shares)} parts", "split")
    order = np.random.default_rng(seed).permutation(len(leaders)).tolist()
    numbers = np.repeat(np.arange(len(shares)), counts).tolist()
    part_of = {leaders[i]: number for i, number in zip(order, numbers, strict=True)}
    return {name: part_of[lead(name)] for name in leader}
