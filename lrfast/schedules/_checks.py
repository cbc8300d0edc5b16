"""Checks that the makers of schedules share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def check_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def check_steps(name: str, value: int, least: int = 1) -> int:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        *others, last = (repr(choice) for choice in choices)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def check_momentum(momentum: tuple[float, float]) -> tuple[float, float]:
    high, low = momentum
    if not (0 <= low <= high < 1):
        raise ValueError(f"momentum must be (highest, lowest) within [0, 1), got {momentum}")
    return high, low
