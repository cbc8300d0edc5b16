"""A schedule as data: segments, tables of them, and their composition.

Evaluation is the engine's (csrc/core/schedule.h), one function for Python, CPU and GPU; functions
that make schedules are in :mod:`lrfast.schedules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lrfast._extension import extension

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = Literal["constant", "linear", "cosine", "exponential"]


@dataclass(frozen=True)
class Segment:
    """One stretch of a schedule: from one value to another along a shape.

    With ``u = (step - t0) / span`` clipped to [0, 1] the value is

    - linear: ``first + (last - first) * u``
    - cosine: ``last + (first - last) * (1 + cos(pi * u)) / 2``
    - exponential: ``first * (last / first) ** u``
    - constant: ``last``

    Args:
        begin: First step at which the segment applies.
        t0: Step at which ``u`` is 0.
        span: Steps in which ``u`` goes from 0 to 1.
        first: Value at ``u = 0``.
        last: Value at ``u = 1`` and after.
        shape: Name of the interpolation.
    """

    begin: int
    t0: float
    span: float
    first: float
    last: float
    shape: Shape

    def as_tuple(self) -> tuple[int, float, float, float, float, str]:
        """Return the fields in the order that the engine reads."""
        return (self.begin, self.t0, self.span, self.first, self.last, self.shape)

    def shifted(self, steps: int) -> Segment:
        """Return the same segment, ``steps`` steps later."""
        return replace(self, begin=self.begin + steps, t0=self.t0 + steps)


Table = tuple[Segment, ...]
_ONE: Table = (Segment(0, 0.0, 0.0, 1.0, 1.0, "constant"),)


@dataclass(frozen=True)
class Schedule:
    """A multiplier of every group's rate over the steps, and optionally the momentum.

    Build one with the functions of this module; combine them with :meth:`then` and ``*``.

    Args:
        name: What it is called in plots and tables.
        total_steps: Its length in optimizer steps.
        rate_tables: Tables whose product is the multiplier.
        momentum_table: Table of the momentum (beta1) itself, or None to leave it alone.

    Example:
        >>> from lrfast import schedules
        >>> schedule = schedules.linear(0.0, 1.0, 4).then(schedules.constant())
        >>> schedule.values(range(6)).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    name: str
    total_steps: int
    rate_tables: tuple[Table, ...]
    momentum_table: Table | None = None

    def at(self, step: int) -> float:
        """Return the multiplier at one step (0 is the first).

        Raises:
            ValueError: If ``step`` is negative.
        """
        return float(self.values([step])[0])

    def values(self, steps: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the multipliers at the steps, shape [len(steps)], float64.

        Raises:
            ValueError: If a step is negative.
        """
        return self._evaluate(steps)[0]

    def momentum(
        self, steps: Sequence[int] | npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64] | None:
        """Return the momenta at the steps, shape [len(steps)], or None if it sets none."""
        return self._evaluate(steps)[1]

    def then(self, other: Schedule) -> Schedule:
        """Return this schedule for its ``total_steps`` steps, and ``other`` from there on.

        Where only one of the two sets the momentum, it is held at the value where the two meet.
        """
        here, after = self.total_steps, other.total_steps
        parts = max(len(self.rate_tables), len(other.rate_tables))
        tables = tuple(_chain(_part(self, i), _part(other, i), here) for i in range(parts))
        momentum: Table | None = None
        if self.momentum_table is not None or other.momentum_table is not None:
            momentum = _chain(
                self.momentum_table or hold(_first(other.momentum_table)),
                other.momentum_table or (),
                here,
            )
        return Schedule(f"{self.name}, then {other.name}", here + after, tables, momentum)

    def __mul__(self, other: Schedule) -> Schedule:
        """Return the product of two multipliers; at most one of them may set the momentum."""
        if not isinstance(other, Schedule):
            return NotImplemented
        if self.momentum_table is not None and other.momentum_table is not None:
            raise ValueError(
                "only one factor of a product may set the momentum, got two: "
                f"{self.name} and {other.name}"
            )
        return Schedule(
            f"{self.name} * {other.name}",
            max(self.total_steps, other.total_steps),
            self.rate_tables + other.rate_tables,
            self.momentum_table if self.momentum_table is not None else other.momentum_table,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain numbers, strings and lists, for checkpoints and JSON."""
        momentum = self.momentum_table
        return {
            "name": self.name,
            "total_steps": self.total_steps,
            "rate_tables": [[list(s.as_tuple()) for s in table] for table in self.rate_tables],
            "momentum_table": None if momentum is None else [list(s.as_tuple()) for s in momentum],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Return the schedule that :meth:`to_dict` described.

        Raises:
            ValueError: If an entry is missing.
        """
        try:
            momentum = data["momentum_table"]
            return cls(
                data["name"],
                data["total_steps"],
                tuple(tuple(Segment(*row) for row in table) for table in data["rate_tables"]),
                None if momentum is None else tuple(Segment(*row) for row in momentum),
            )
        except KeyError as error:
            raise ValueError(
                f"data must be what Schedule.to_dict returned, got a dict without {error}"
            ) from error

    def describe(self) -> str:
        """Return one line per segment: steps, shape, first and last value."""
        lines = [f"{self.name}: {self.total_steps} steps"]
        named = [("rate x", table) for table in self.rate_tables]
        if self.momentum_table is not None:
            named.append(("momentum", self.momentum_table))
        for label, table in named:
            ends = [segment.begin for segment in table[1:]] + [self.total_steps]
            for segment, end in zip(table, ends, strict=True):
                lines.append(
                    f"  {label:8} steps {segment.begin:>6} to {end:>6}  {segment.shape:11} "
                    f"{segment.first:.6g} -> {segment.last:.6g}"
                )
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw multiplier and momentum over the steps; needs matplotlib.

        Args:
            path: Where to save the figure too; the suffix names the format.

        Returns:
            The figure.
        """
        from lrfast.plot import plot_schedule

        return plot_schedule(self, path)

    def encode(self) -> tuple[Any, Any]:
        """Return the tables as the engine reads them."""
        momentum = self.momentum_table
        return (
            [[segment.as_tuple() for segment in table] for table in self.rate_tables],
            None if momentum is None else [segment.as_tuple() for segment in momentum],
        )

    def _evaluate(
        self, steps: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        array = np.asarray(steps, dtype=np.int64)
        if array.size and array.min() < 0:
            raise ValueError(f"steps must not be negative, got {array.min()}")
        rates, momenta = extension().evaluate_schedule(self.encode(), array)
        return rates, momenta


def hold(value: float) -> Table:
    return (Segment(0, 0.0, 0.0, value, value, "constant"),)


def _first(table: Table | None) -> float:
    """The table's value at step 0: a segment of no span is at its end at once."""
    if not table:
        return 0.0
    return table[0].first if table[0].span > 0 else table[0].last


def _part(schedule: Schedule, index: int) -> Table:
    """The index-th factor of a product; products of fewer factors are filled up with ones."""
    tables = schedule.rate_tables
    return tables[index] if index < len(tables) else _ONE


def _chain(table: Table, other: Table, steps: int) -> Table:
    """``table`` for its first ``steps`` steps, ``other`` afterwards."""
    kept = tuple(segment for segment in table if segment.begin < steps)
    return kept + tuple(segment.shifted(steps) for segment in other)
