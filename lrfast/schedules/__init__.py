"""Schedules: functions that return a multiplier of every group's rate as an immutable table.

A schedule multiplies each parameter group's own rate, so that ratios between groups survive it; it
may also set the momentum (beta1 of Adam). Schedules of ``total_steps`` steps have their first value
at step 0 and, past their end, hold their last value for ever. Arguments are named as in torch where
torch has the schedule.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from lrfast.schedules._basic import constant, cosine, exponential, linear, sweep
from lrfast.schedules._cycles import one_cycle
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._tables import Segment, Table

__all__ = [
    "Schedule",
    "Segment",
    "Table",
    "constant",
    "cosine",
    "exponential",
    "get",
    "linear",
    "one_cycle",
    "sweep",
]


def get(name: str) -> Callable[..., Schedule]:
    """Return the function that makes schedules of that name.

    Args:
        name: One of ``constant``, ``cosine``, ``exponential``, ``linear``, ``one_cycle``.

    Raises:
        ValueError: If there is none; the message names the nearest one.

    Example:
        >>> from lrfast import schedules
        >>> schedules.get("cosine")(T_max=10).at(10)
        0.0
    """
    makers = {maker.__name__: maker for maker in (constant, cosine, exponential, linear, one_cycle)}
    if name in makers:
        return makers[name]
    near = difflib.get_close_matches(str(name), makers, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"name must be one of {', '.join(makers)}, got {name!r}{hint}")
