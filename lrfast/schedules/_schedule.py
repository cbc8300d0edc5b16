"""A schedule as a value: its tracks, their evaluation and composition.

Evaluation is the engine's (csrc/core/schedule.h), one function for Python, CPU and GPU; functions
that make schedules stand in the other modules of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrfast._utils.extension import extension
from lrfast._utils.validation import check_dict, check_int, check_list, check_str
from lrfast.schedules._saved import decode_track
from lrfast.schedules._segments import Track, chain, hold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Steps = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """A multiplier of every group's rate over the steps; it may drive momentum and decay too.

    Build one with the functions of :mod:`lrfast.schedules`; combine them with :meth:`then`, ``*``
    and :meth:`repeat`.

    Args:
        name: What it is called in plots and tables.
        total_steps: Its length in optimizer steps.
        factors: Tracks whose product is the multiplier.
        momentum_track: The momentum (beta1) itself, or None to leave it alone.
        weight_decay_track: A multiplier of every group's weight decay, or None.

    Example:
        >>> from lrfast import schedules
        >>> schedule = schedules.linear(0.0, 1.0, 4).then(schedules.constant())
        >>> schedule.values(range(6)).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    name: str
    total_steps: int
    factors: tuple[Track, ...]
    momentum_track: Track | None = None
    weight_decay_track: Track | None = None

    def at(self, step: int) -> float:
        """Return the multiplier at one step (0 is the first).

        Args:
            step: Counted from 0.

        Raises:
            ValueError: If ``step`` is negative.
        """
        return float(self.values([step])[0])

    def values(self, steps: Steps) -> Floats:
        """Return the multipliers of the rate at the steps, shape [len(steps)], float64.

        Args:
            steps: Whole numbers, counted from 0, in any order.

        Raises:
            ValueError: If a step is negative.
        """
        return self._evaluate(steps)[0]

    def momentum(self, steps: Steps) -> Floats | None:
        """Return the momenta at the steps, shape [len(steps)], or None if it sets none.

        Args:
            steps: As for :meth:`values`.
        """
        return self._evaluate(steps)[1]

    def weight_decay(self, steps: Steps) -> Floats | None:
        """Return the multipliers of the weight decay, shape [len(steps)], or None.

        Args:
            steps: As for :meth:`values`.
        """
        return self._evaluate(steps)[2]

    def then(self, other: Schedule) -> Schedule:
        """Return this schedule for its ``total_steps`` steps, and ``other`` from there on.

        Where only one of the two sets the momentum, it is held at the value where the two meet; a
        weight decay that only one of them moves is the group's own while the other is at work.

        Args:
            other: What follows; its step 0 is this schedule's ``total_steps``.

        Raises:
            TypeError: If ``other`` is not a schedule.
        """
        if not isinstance(other, Schedule):
            raise TypeError(f"other must be a Schedule, got {type(other).__name__}")
        here, one = self.total_steps, hold(1.0)
        parts = max(len(self.factors), len(other.factors))
        factors = tuple(
            chain(_part(self.factors, i, one), _part(other.factors, i, one), here)
            for i in range(parts)
        )
        momentum = self.momentum_track
        if other.momentum_track is not None:
            before = momentum or hold(other.momentum_track[0].start)
            momentum = chain(before, other.momentum_track, here)
        elif momentum is not None:
            momentum = chain(momentum, hold(self._momentum_at(here)), here)
        decay = self.weight_decay_track
        if decay is not None or other.weight_decay_track is not None:
            decay = chain(decay or one, other.weight_decay_track or one, here)
        name = f"{self.name}, then {other.name}"
        return Schedule(name, here + other.total_steps, factors, momentum, decay)

    def __mul__(self, other: Schedule) -> Schedule:
        """Return the product of two multipliers; one of them at most may set the momentum."""
        if not isinstance(other, Schedule):
            return NotImplemented
        for name in ("momentum", "weight_decay"):
            if None not in (getattr(self, f"{name}_track"), getattr(other, f"{name}_track")):
                raise ValueError(
                    f"only one factor of a product may set the {name.replace('_', ' ')}, got two: "
                    f"{self.name} and {other.name}"
                )
        return Schedule(
            f"{self.name} * {other.name}",
            max(self.total_steps, other.total_steps),
            self.factors + other.factors,
            self.momentum_track or other.momentum_track,
            self.weight_decay_track or other.weight_decay_track,
        )

    def with_weight_decay(self, decay: Schedule) -> Schedule:
        """Return this schedule with another one's multiplier at work on the weight decay.

        Args:
            decay: Its multiplier of the rate becomes that of every group's ``weight_decay``.

        Raises:
            ValueError: If ``decay`` is a product.

        Example:
            >>> from lrfast import schedules
            >>> rising = schedules.linear(1.0, 10.0, 100)
            >>> schedule = schedules.cosine(100).with_weight_decay(rising)
            >>> schedule.weight_decay([0, 100]).tolist()
            [1.0, 10.0]
        """
        if len(decay.factors) != 1:
            raise ValueError(f"decay must not be a product, got {decay.name}")
        return replace(self, weight_decay_track=decay.factors[0])

    def lasting(self, steps: int) -> Schedule:
        """Return the same values with another ``total_steps``.

        That is how long it lasts before what :meth:`then` adds, and how far plots go. A schedule
        that ends before holds its last value.

        Args:
            steps: The new ``total_steps``, 1 or more.

        Raises:
            ValueError: If ``steps`` is out of range.
        """
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"steps must be a whole number, 1 or more, got {steps!r}")
        return replace(self, total_steps=int(steps))

    def repeat(self, times: int | None = None) -> Schedule:
        """Return this schedule again and again, ``total_steps`` steps each.

        Args:
            times: Cycles, 1 or more; the last value is held afterwards. None: for ever.

        Raises:
            ValueError: If ``times`` is out of range, or None for a schedule that repeats already.
        """
        if times is None:
            return replace(
                self,
                name=f"{self.name}, repeated",
                factors=tuple(_periodic(self, factor) for factor in self.factors),
                momentum_track=self.momentum_track and _periodic(self, self.momentum_track),
                weight_decay_track=(
                    self.weight_decay_track and _periodic(self, self.weight_decay_track)
                ),
            )
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise ValueError(f"times must be a whole number, 1 or more, or None, got {times!r}")
        result = self
        for _ in range(times - 1):
            result = result.then(self)
        return replace(result, name=f"{self.name}, {times} times")

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain numbers, strings and lists, for checkpoints and JSON."""
        rate, momentum, decay = self.encode()
        return {
            "name": self.name,
            "total_steps": self.total_steps,
            "rate": rate,
            "momentum": momentum,
            "weight_decay": decay,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Return the schedule that :meth:`to_dict` described.

        Args:
            data: Such a description, also one that went through JSON.

        Raises:
            ValueError: If an entry is missing or is not what :meth:`to_dict` returns.
        """
        check_dict("data", data)
        try:
            momentum, decay = (
                None if data[name] is None else decode_track(data[name])
                for name in ("momentum", "weight_decay")
            )
            return cls(
                check_str("name", data["name"]),
                check_int("total_steps", data["total_steps"], least=1),
                tuple(decode_track(track) for track in check_list("rate", data["rate"], least=1)),
                momentum,
                decay,
            )
        except KeyError as error:
            raise ValueError(
                f"data must be what Schedule.to_dict returned, got a dict without {error}"
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"data must be what Schedule.to_dict returned, got tables that are none: {error}"
            ) from error

    def describe(self) -> str:
        """Return one line per segment: steps, shape, first and last value."""
        from lrfast.schedules._describe import describe

        return describe(self)

    def table(
        self, steps: Sequence[int] | None = None, rates: Sequence[float] = ()
    ) -> list[dict[str, float]]:
        """Return one row per step: "step", "factor", and "momentum" and "weight_decay" if set.

        Args:
            steps: Which; None: where a segment begins, the last step and the one after it.
            rates: The groups' own rates, for columns "rate 0", "rate 1" and so on.

        Raises:
            ValueError: If a step is negative.
        """
        from lrfast.schedules._describe import table

        return table(self, steps, rates)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that are the same for equal schedules only."""
        from lrfast.schedules._describe import fingerprint

        return fingerprint(self)

    def difference(self, other: Schedule) -> str:
        """Return in words what differs from another schedule; nothing if the two are equal.

        Args:
            other: The other schedule.
        """
        from lrfast.schedules._describe import difference

        return difference(self, other)

    def extend_to(self, total_steps: int, step: int = 0) -> Schedule:
        """Return the schedule with another length, the same up to ``step``.

        What lies after ``step`` is stretched in time, so that the last change comes as much later
        as the total is longer; a segment under way goes on from where it is. What repeats goes on
        as it is.

        Args:
            total_steps: The new length, 1 or more; it may be shorter.
            step: Where training stands, 0 or more.

        Raises:
            ValueError: If an argument is out of range, nothing is left after ``step`` to shorten,
                or a lookup would have to be stretched.

        Example:
            >>> from lrfast import schedules
            >>> schedules.linear(1.0, 0.0, 4).extend_to(6, step=2).values(range(7)).tolist()
            [1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0]
        """
        from lrfast.schedules._clock import extend_to

        return extend_to(self, total_steps, step)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw multiplier and momentum over the steps; needs matplotlib.

        Args:
            path: Where to save the figure too; the suffix names the format.

        Returns:
            The figure.
        """
        from lrfast.plot import plot_schedule

        return plot_schedule(self, path)

    def encode(self) -> tuple[Any, Any, Any]:
        """Return the tracks of rate, momentum and weight decay as the engine reads them."""
        return (
            [_encode(factor) for factor in self.factors],
            None if self.momentum_track is None else _encode(self.momentum_track),
            None if self.weight_decay_track is None else _encode(self.weight_decay_track),
        )

    def _momentum_at(self, step: int) -> float:
        momenta = self.momentum([step])
        assert momenta is not None
        return float(momenta[0])

    def _evaluate(self, steps: Steps) -> tuple[Floats, Floats | None, Floats | None]:
        array = np.asarray(steps, dtype=np.int64)
        if array.size and array.min() < 0:
            raise ValueError(f"steps must not be negative, got {array.min()}")
        rates, momenta, decays = extension().evaluate_schedule(self.encode(), array)
        return rates, momenta, decays


def _encode(track: Track) -> list[Any]:
    return [table.encode() for table in track]


def _part(factors: tuple[Track, ...], index: int, one: Track) -> Track:
    """The index-th factor of a product; products of fewer factors are filled up with ones."""
    return factors[index] if index < len(factors) else one


def _periodic(schedule: Schedule, track: Track) -> Track:
    total, stride = schedule.total_steps, track[0].stride
    if len(track) > 1 or not track[0].is_single or total % stride:
        raise ValueError(
            f"times must be a number for a schedule that repeats already, got None for "
            f"{schedule.name}"
        )
    return (replace(track[0], period=total // stride),)
