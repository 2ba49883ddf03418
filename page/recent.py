"""A store in memory that forgets what has not been used for longest."""
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def size_of(value: Any) -> int:
    """The bytes of all arrays and tensors in nested tuples and lists."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, tuple | list) else 0


class Recent:
    """Objects by key. Beyond `most` bytes those not used for longest are forgotten; the latest always stays.

    Threads may share one.

    Args:
        most: bytes, as `size_of` counts them; what two objects share is counted twice.
        forgotten: called with the key of what is forgotten.
    """

    def __init__(self, most: int, forgotten: Callable[[str], None] = lambda key: None):
        self.most = most
        self.forgotten = forgotten
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """The object; None if it was never there or is forgotten."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: str, value: Any) -> None:
        """Keep an object, in place of an earlier one with the same key, and forget others beyond the limit."""
        gone = []
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = value, size_of(value)
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self.most:
                gone.append(self._kept.popitem(last=False)[0])
        for other in gone:
            self.forgotten(other)
