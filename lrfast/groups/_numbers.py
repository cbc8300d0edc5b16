"""The check of numbers that rates and decays share."""

from __future__ import annotations

import math
from numbers import Real


def number(argument: str, value: object) -> float:
    """Return a number that is finite and not negative, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}; pass a float such as 1e-3")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument} must be finite and not negative, got {value}; try 1e-3")
    return float(value)


def fraction(argument: str, value: object, hint: str = "") -> float:
    """Return a number from 0 to 1, as a float."""
    found = number(argument, value)
    if found > 1:
        raise ValueError(f"{argument} must lie in [0, 1], got {value}{hint}")
    return found
