"""Schedules: functions that return a multiplier of every group's rate as an immutable table.

A schedule multiplies each parameter group's own rate, so that ratios between groups survive it; it
may also set the momentum (beta1 of Adam). Schedules of ``total_steps`` steps have their first value
at step 0 and, past their end, hold their last value for ever. Arguments are named as in torch where
torch has the schedule.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from lrfast.schedules._basic import (
    constant,
    cosine,
    exponential,
    linear,
    polynomial,
    rex,
    sweep,
)
from lrfast.schedules._clock import per_epoch
from lrfast.schedules._convert import from_function, from_torch
from lrfast.schedules._cycles import cyclic, one_cycle, sgdr
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Table
from lrfast.schedules._stairs import multistep, staircase, step
from lrfast.schedules._warmup import flat_cosine, inverse_sqrt, slanted_triangular, warmup, wsd

__all__ = [
    "Schedule",
    "Segment",
    "Table",
    "constant",
    "cosine",
    "cyclic",
    "exponential",
    "flat_cosine",
    "from_function",
    "from_torch",
    "get",
    "inverse_sqrt",
    "linear",
    "multistep",
    "one_cycle",
    "per_epoch",
    "polynomial",
    "rex",
    "sgdr",
    "slanted_triangular",
    "staircase",
    "step",
    "sweep",
    "warmup",
    "wsd",
]


def get(name: str) -> Callable[..., Schedule]:
    """Return the function that makes schedules of that name.

    Args:
        name: That of any function of this module that makes one schedule, such as "one_cycle".

    Raises:
        ValueError: If there is none; the message names the nearest one.

    Example:
        >>> from lrfast import schedules
        >>> schedules.get("cosine")(T_max=10).at(10)
        0.0
    """
    makers: dict[str, Callable[..., Schedule]] = {
        maker.__name__: maker
        for maker in (
            *(constant, cosine, cyclic, exponential, flat_cosine, from_function, inverse_sqrt),
            *(linear, multistep, one_cycle, polynomial, rex, sgdr, slanted_triangular),
            *(staircase, step, sweep, warmup, wsd),
        )
    }
    if name in makers:
        return makers[name]
    near = difflib.get_close_matches(str(name), makers, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"name must be one of {', '.join(makers)}, got {name!r}{hint}")
