"""What schedules are made of, as csrc/core/schedule.h evaluates it: segments, tables, tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from lrfast._utils.validation import check_list

Shape = Literal[
    "constant",
    "linear",
    "cosine",
    "exponential",
    "polynomial",
    "power",
    "inverse",
    "rex",
    "lookup",
]


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
        begin: First step at which the segment applies.
        t0: Step at which ``u`` is 0.
        span: Steps in which ``u`` goes from 0 to 1.
        first: Value at ``u = 0``.
        last: Value at ``u = 1`` and after.
        shape: Name of the interpolation.
        power: Exponent of the shapes that have one.
        values: Of the shape "lookup", one per step from ``t0`` on.
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
            steps: Less than 0 for earlier.
        """
        return replace(self, begin=self.begin + steps, t0=self.t0 + steps)

    def encode(self) -> tuple[Any, ...]:
        """Return the fields in the order that the engine reads."""
        return (
            self.begin,
            self.t0,
            self.span,
            self.first,
            self.last,
            self.shape,
            self.power,
            self.values,
        )

    @classmethod
    def decode(cls, row: Sequence[Any]) -> Segment:
        """Return the segment that :meth:`encode` described.

        Args:
            row: What the engine takes.
        """
        begin, t0, span, first, last, shape, power, values = check_list("a segment", row)
        steps = tuple(check_list("values", values))
        return cls(begin, t0, span, first, last, shape, power, steps)


@dataclass(frozen=True)
class Table:
    """Segments in order, on a clock of their own, once or with a period.

    The clock counts strides of ``stride`` steps since ``begin``. In cycle k, and t strides after
    ``begin``, a segment's value v becomes ``floor + (v - floor) * gain**k * decay**t``.

    Args:
        segments: Ordered by their ``begin``, which counts strides.
        begin: First step at which the table applies.
        period: Strides after which the segments start again; 0: never.
        gain: Factor per cycle.
        decay: Factor per stride.
        floor: What ``gain`` and ``decay`` lead to.
        stride: Steps for which each value is held, 1 or more.
    """

    segments: tuple[Segment, ...]
    begin: int = 0
    period: int = 0
    gain: float = 1.0
    decay: float = 1.0
    floor: float = 0.0
    stride: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the segments say all."""
        return self.is_single and self.stride == 1

    @property
    def is_single(self) -> bool:
        """Whether the segments come once, as they are."""
        return self.period == 0 and self.gain == 1.0 and self.decay == 1.0

    @property
    def start(self) -> float:
        """The value at the table's first step; a segment of no span is at its end at once."""
        segment = self.segments[0]
        if segment.shape == "lookup":
            return segment.values[0]
        return segment.first if segment.span > 0 else segment.last

    def shifted(self, steps: int) -> Table:
        """Return the same table, ``steps`` steps later.

        Args:
            steps: Less than 0 for earlier.
        """
        return replace(self, begin=self.begin + steps)

    def encode(self) -> tuple[Any, ...]:
        """Return the fields in the order that the engine reads."""
        segments = [segment.encode() for segment in self.segments]
        numbers = (self.begin, self.period, self.gain, self.decay, self.floor, self.stride)
        return (*numbers, segments)

    @classmethod
    def decode(cls, row: Sequence[Any]) -> Table:
        """Return the table that :meth:`encode` described.

        Args:
            row: What the engine takes.
        """
        *numbers, segments = check_list("a table", row, least=1)
        rows = check_list("segments", segments)
        return cls(tuple(Segment.decode(fields) for fields in rows), *numbers)


Track: TypeAlias = tuple[Table, ...]  # ordered by begin


def track(*segments: Segment) -> Track:
    """Return a track of one table of the segments."""
    return (Table(segments),)


def hold(value: float) -> Track:
    """Return a track that always has one value."""
    return track(Segment(0, 0.0, 0.0, value, value, "constant"))


def chain(before: Track, after: Track, steps: int) -> Track:
    """Return ``before`` for its first ``steps`` steps, ``after`` from there on.

    Where two plain tables meet they become one, so that what was composed of simple schedules
    equals what was written at once.
    """
    kept = tuple(table for table in before if table.begin < steps)
    shifted = tuple(table.shifted(steps) for table in after)
    last, first = kept[-1], shifted[0]
    if not (last.is_plain and first.is_plain):
        return kept + shifted
    segments = tuple(s for s in last.segments if last.begin + s.begin < steps)
    moved = tuple(segment.shifted(first.begin - last.begin) for segment in first.segments)
    return (*kept[:-1], replace(last, segments=segments + moved), *shifted[1:])
