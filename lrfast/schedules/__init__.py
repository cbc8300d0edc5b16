"""Schedules: multipliers of every group's learning rate over the steps, as immutable tables.

A schedule multiplies each parameter group's own learning rate, so that ratios between groups
survive it; it may also set the momentum (beta1 of Adam). Schedules of ``total_steps`` steps have
their first value at step 0 and hold their last value past their end. Arguments are named as in
torch if torch has the schedule.
"""

from lrfast.schedules._basic import (
    constant,
    cosine,
    exponential,
    linear,
    multistep,
    polynomial,
    rex,
    staircase,
    step,
    sweep,
)
from lrfast.schedules._convert import from_function, from_torch
from lrfast.schedules._cycles import cyclic, one_cycle, sgdr
from lrfast.schedules._registry import get
from lrfast.schedules._schedule import Schedule, per_epoch
from lrfast.schedules._segments import Segment, Table
from lrfast.schedules._warmup import (
    cosine_with_warmup,
    flat_cosine,
    inverse_sqrt,
    linear_with_warmup,
    slanted_triangular,
    warmup,
    wsd,
)

__all__ = [
    "Schedule",
    "Segment",
    "Table",
    "constant",
    "cosine",
    "cosine_with_warmup",
    "cyclic",
    "exponential",
    "flat_cosine",
    "from_function",
    "from_torch",
    "get",
    "inverse_sqrt",
    "linear",
    "linear_with_warmup",
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
