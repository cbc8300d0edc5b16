"""Checks of what a saved schedule holds, which may be any file's: before the engine reads it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

from lrfast._utils.validation import check_finite, check_int, check_list, check_str, short_repr
from lrfast.schedules._segments import Segment, Shape, Table, Track


def decode_track(rows: Any) -> Track:
    """Return the track that a list of encoded tables describes.

    Raises:
        TypeError, ValueError: If it describes none that the engine can evaluate.
    """
    tables = tuple(Table.decode(row) for row in check_list("a track", rows, least=1))
    for table in tables:
        _check_table(table)
    _check_order("tables", tables)
    return tables


def _check_table(table: Table) -> None:
    check_int("begin", table.begin)
    check_int("period", table.period)
    check_int("stride", table.stride, least=1)
    check_finite("gain", table.gain, least=0.0)
    check_finite("decay", table.decay, least=0.0)
    check_finite("floor", table.floor)
    for segment in table.segments:
        _check_segment(segment)
    _check_order("segments", table.segments)


def _check_segment(segment: Segment) -> None:
    check_int("begin", segment.begin)
    check_str("shape", segment.shape, get_args(Shape))
    for name in ("t0", "first", "last", "power"):
        check_finite(name, getattr(segment, name))
    check_finite("span", segment.span, least=0.0)
    for value in segment.values:
        check_finite("values", value)
    if segment.shape == "lookup" and len(segment.values) < max(segment.span, 1):
        raise ValueError(
            f"values must hold one number per step of the span, got {len(segment.values)} for a "
            f"span of {segment.span}"
        )
    first, last, power = segment.first, segment.last, segment.power
    if segment.shape == "exponential" and not (first > 0 and last >= 0):
        raise ValueError(f"exponential needs factors above 0, got {first} to {last}")
    if segment.shape == "inverse" and not (first > 0 and last > 0 and power > 0):
        raise ValueError(
            f"inverse needs factors and a power above 0, got {first} to {last}, power {power}"
        )


def _check_order(name: str, rows: Sequence[Table] | Sequence[Segment]) -> None:
    begins = [row.begin for row in rows]
    if not begins or begins[0] or any(later < earlier for earlier, later in pairwise(begins)):
        raise ValueError(f"{name} must begin at 0 and be in order, got begins {short_repr(begins)}")
