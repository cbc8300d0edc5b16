"""Checks that the makers of schedules share."""

from __future__ import annotations

import math

import numpy as np


def check_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def check_steps(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}")
    return int(value)


def check_momentum(momentum: tuple[float, float]) -> tuple[float, float]:
    high, low = momentum
    if not (0 <= low <= high < 1):
        raise ValueError(f"momentum must be (highest, lowest) within [0, 1), got {momentum}")
    return high, low
