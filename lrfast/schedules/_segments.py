"""The parts of schedules, as csrc/core/schedule.h evaluates them: segments, tables, tracks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    MAX_STEPS,
    check_finite,
    check_int,
    check_list,
    check_str,
    short_repr,
)

Shape = Literal[
    "constant", "linear", "cosine", "exponential", "polynomial", "power", "inverse", "rex", "lookup"
]

# What the engine takes, field by field (csrc/bindings/schedules.h); lrfast/_C.pyi says the same.
EncodedSegment: TypeAlias = tuple[int, float, float, float, float, Shape, float, tuple[float, ...]]
EncodedTable: TypeAlias = tuple[int, int, float, float, float, int, list[EncodedSegment]]
EncodedTrack: TypeAlias = list[EncodedTable]
EncodedSchedule: TypeAlias = tuple[list[EncodedTrack], EncodedTrack | None, EncodedTrack | None]


@public_in("lrfast.schedules")
@dataclass(frozen=True)
class Segment:
    """One stretch of a schedule: from one value to another along a shape.

    With ``u = (step - t0) / span`` clipped to [0, 1] and ``p = power`` the value is

    - constant: ``first``, and ``last`` after the span
    - linear: ``first + (last - first) * u``
    - cosine: ``last + (first - last) * ((1 + cos(pi * u)) / 2) ** p``
    - exponential: ``first * (last / first) ** u``
    - polynomial: ``last + (first - last) * (1 - u) ** p``
    - power: ``first + (last - first) * u ** p``
    - inverse: ``first / (1 + r * u) ** p`` with the r that makes it end at ``last``
    - rex: ``last + (first - last) * (1 - u) / (1 - p * u)``
    - lookup: ``values[step - t0]``

    Args:
        begin: First step at which the segment applies, 0 or more.
        t0: Step at which ``u`` is 0, a fraction of a step too.
        span: Steps in which ``u`` goes from 0 to 1, 0 or more.
        first: Value at ``u = 0``.
        last: Value at ``u = 1`` and after.
        shape: Name of the interpolation, one of the above.
        power: Exponent of the shapes that have one; default 1.
        values: Values of the shape "lookup", one per step from ``t0`` on; default none.
    """

    begin: int
    t0: float
    span: float
    first: float
    last: float
    shape: Shape
    power: float = 1.0
    values: tuple[float, ...] = ()

    def shifted(self, steps: int) -> Segment:
        """Return the same segment, ``steps`` steps later.

        Args:
            steps: Steps to add, negative for an earlier segment.
        """
        return replace(self, begin=self.begin + steps, t0=self.t0 + steps)

    def encode(self) -> EncodedSegment:
        """Return the fields in the order that the engine reads."""
        numbers = (self.begin, self.t0, self.span, self.first, self.last)
        return (*numbers, self.shape, self.power, self.values)

    @classmethod
    def decode(cls, row: Sequence[Any]) -> Segment:
        """Return the segment that :meth:`encode` described.

        Args:
            row: The encoded segment, of a file perhaps.

        Raises:
            TypeError, ValueError: If the engine could not evaluate it.
        """
        begin, t0, span, first, last, shape, power, values = check_list("a segment", row)
        steps = tuple(check_finite("values", value) for value in check_list("values", values))
        check_int("begin", begin)
        check_str("shape", shape, get_args(Shape))
        for name, number in (("t0", t0), ("first", first), ("last", last), ("power", power)):
            check_finite(name, number)
        check_finite("span", span, least=0.0)
        if shape == "lookup" and len(steps) < max(span, 1):
            raise ValueError(
                f"values must hold one number per step of the span, got {len(steps)} for a span of "
                f"{span}"
            )
        if shape == "exponential" and not (first > 0 and last >= 0):
            raise ValueError(f"exponential needs factors above 0, got {first} to {last}")
        if shape == "inverse" and not (first > 0 and last > 0 and power > 0):
            raise ValueError(
                f"inverse needs factors and a power above 0, got {first} to {last}, power {power}"
            )
        return cls(begin, t0, span, first, last, shape, power, steps)


@public_in("lrfast.schedules")
@dataclass(frozen=True)
class Table:
    """Segments in order, on a clock of their own, once or with a period.

    The clock counts strides of ``stride`` steps since ``begin``. In cycle k, and t strides after
    ``begin``, a segment's value v becomes ``floor + (v - floor) * gain**k * decay**t``.

    Args:
        segments: Segments, ordered by their ``begin``, which counts strides.
        begin: First step at which the table applies, 0 or more; default 0.
        period: Strides after which the segments start again; 0, the default: never.
        gain: Factor per cycle, 0 or more; default 1.
        decay: Factor per stride, 0 or more; default 1.
        floor: Value that ``gain`` and ``decay`` lead to; default 0.
        stride: Steps for which each value is held, 1 or more; default 1.
    """

    segments: tuple[Segment, ...]
    begin: int = 0
    period: int = 0
    gain: float = 1.0
    decay: float = 1.0
    floor: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        # Cycles without end last to the last step that there is: moved, they would last longer.
        reached = tuple(segment for segment in self.segments if segment.begin <= MAX_STEPS)
        object.__setattr__(self, "segments", reached)

    @property
    def is_plain(self) -> bool:
        """Whether the segments are applied once, step by step, without gain and decay."""
        return self.is_single and self.stride == 1

    @property
    def is_single(self) -> bool:
        """Whether the segments are applied once, without gain and decay."""
        return self.period == 0 and self.gain == 1.0 and self.decay == 1.0

    @property
    def start(self) -> float:
        """Value at the table's first step; a segment of no span is at its end at once."""
        segment = self.segments[0]
        if segment.shape == "lookup":
            return segment.values[0]
        return segment.first if segment.span > 0 else segment.last

    def shifted(self, steps: int) -> Table:
        """Return the same table, ``steps`` steps later.

        Args:
            steps: Steps to add, negative for an earlier table.
        """
        return replace(self, begin=self.begin + steps)

    def encode(self) -> EncodedTable:
        """Return the fields in the order that the engine reads."""
        segments = [segment.encode() for segment in self.segments]
        numbers = (self.begin, self.period, self.gain, self.decay, self.floor, self.stride)
        return (*numbers, segments)

    @classmethod
    def decode(cls, row: Sequence[Any]) -> Table:
        """Return the table that :meth:`encode` described.

        Args:
            row: The encoded table, of a file perhaps.

        Raises:
            TypeError, ValueError: If the engine could not evaluate it.
        """
        *numbers, segments = check_list("a table", row, least=1)
        rows = check_list("segments", segments)
        table = cls(tuple(Segment.decode(fields) for fields in rows), *numbers)
        check_int("begin", table.begin)
        check_int("period", table.period)
        check_int("stride", table.stride, least=1)
        check_finite("gain", table.gain, least=0.0)
        check_finite("decay", table.decay, least=0.0)
        check_finite("floor", table.floor)
        _check_order("segments", table.segments)
        return table


Track: TypeAlias = tuple[Table, ...]  # ordered by begin


def decode_track(rows: Any) -> Track:
    """Return the track that a list of encoded tables describes, if the engine can evaluate it."""
    tables = tuple(Table.decode(row) for row in check_list("a track", rows, least=1))
    _check_order("tables", tables)
    return tables


def _check_order(name: str, rows: Sequence[Table] | Sequence[Segment]) -> None:
    begins = [row.begin for row in rows]
    if not begins or begins[0] or any(later < earlier for earlier, later in pairwise(begins)):
        raise ValueError(f"{name} must begin at 0 and be in order, got begins {short_repr(begins)}")


def ramp(
    begin: float, steps: float, first: float, last: float, shape: Shape, power: float = 1.0
) -> Segment:
    """Return a segment that applies from the step on at which it begins, or from the next one."""
    return Segment(math.ceil(begin), begin, steps, first, last, shape, power)


def level(begin: int, value: float) -> Segment:
    """Return a segment of one value."""
    return ramp(begin, 0.0, value, value, "constant")


def encode_track(tables: Track) -> EncodedTrack:
    """Return the tables as the engine reads them."""
    return [table.encode() for table in tables]


def track(*segments: Segment) -> Track:
    """Return a track of one table of the segments."""
    return (Table(segments),)


def hold(value: float) -> Track:
    """Return a track that always has one value."""
    return track(level(0, value))


def chain(before: Track, after: Track, steps: int) -> Track:
    """Return ``before`` for its first ``steps`` steps, ``after`` from there on.

    Two plain tables that meet become one, so that a schedule composed of simple ones equals the
    same schedule written at once.
    """
    kept = tuple(table for table in before if table.begin < steps)
    shifted = tuple(table.shifted(steps) for table in after)
    last, first = kept[-1], shifted[0]
    if not (last.is_plain and first.is_plain):
        return kept + shifted
    segments = tuple(s for s in last.segments if last.begin + s.begin < steps)
    moved = tuple(segment.shifted(first.begin - last.begin) for segment in first.segments)
    return (*kept[:-1], replace(last, segments=segments + moved), *shifted[1:])
