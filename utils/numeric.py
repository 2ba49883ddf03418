"""Numbers in files, where whole numbers may have any number of digits."""
import math
import sys
from typing import Any

LARGEST = int(sys.float_info.max)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, and computing with it as a float cannot fail; NaN and infinity may be."""
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def is_finite(value: Any) -> bool:
    """Whether a value is a number in the sense of `is_number`, and neither NaN nor infinity."""
    return is_number(value) and math.isfinite(value)
