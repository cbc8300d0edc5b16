"""Schedule: tracks as one value, their evaluation, composition and change of clock.

The engine evaluates them (csrc/core/schedule.h), with one function for Python, CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from lrfast._utils.arguments import checked, checked_methods
from lrfast._utils.extension import extension
from lrfast._utils.figures import finish, line_style, step_panels
from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    check_count,
    check_dict,
    check_int,
    check_list,
    check_str,
    is_int,
    short_repr,
)
from lrfast.schedules._describe import hashed, segment_lines, turning_steps, value_differences
from lrfast.schedules._segments import (
    EncodedSchedule,
    Segment,
    Table,
    Track,
    chain,
    decode_track,
    encode_track,
    hold,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Steps = Sequence[int] | npt.NDArray[np.int64]
Rates = Sequence[float]
Clock = Callable[[float], float]  # from a step to the step at which its value comes instead

_SAMPLES = 100_000  # steps at which two schedules are compared


@public_in("lrfast.schedules")
@dataclass(frozen=True)
@checked_methods("at", "values", "momentum", "weight_decay")
class Schedule:
    """A multiplier of every group's learning rate over the steps; it may set the momentum too.

    Build them with :mod:`lrfast.schedules`; combine them with :meth:`then`, ``*``, :meth:`repeat`.

    Args:
        name: Name in plots and tables.
        total_steps: Length in optimizer steps, 1 or more.
        factors: Tracks whose product is the multiplier, 1 or more of them.
        momentum_track: The momentum (beta1) itself; None, the default: untouched.
        weight_decay_track: A multiplier of the groups' weight decay; None, the default: untouched.

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
        """Return the multiplier at one step.

        Args:
            step: Optimizer step, counted from 0.

        Raises:
            ValueError: If ``step`` is negative.
        """
        return float(self.values([step])[0])

    def values(self, steps: Steps) -> Floats:
        """Return the multipliers of the learning rate at the steps: float64, [len(steps)].

        Args:
            steps: Optimizer steps, counted from 0, in any order.

        Raises:
            ValueError: If a step is negative.
        """
        return self._evaluate(steps)[0]

    def momentum(self, steps: Steps) -> Floats | None:
        """Return the momenta at the steps, [len(steps)], or None if it sets none.

        Args:
            steps: Steps as for :meth:`values`.
        """
        return self._evaluate(steps)[1]

    def weight_decay(self, steps: Steps) -> Floats | None:
        """Return the multipliers of the weight decay at the steps, [len(steps)], or None.

        Args:
            steps: Steps as for :meth:`values`.
        """
        return self._evaluate(steps)[2]

    def then(self, other: Schedule) -> Schedule:
        """Return this schedule for its ``total_steps`` steps, and ``other`` from there on.

        If only one of the two sets the momentum, it is held at its value where they meet. A weight
        decay that only one of them moves is the group's own during the other.

        Args:
            other: Schedule that follows; its step 0 is this schedule's ``total_steps``.

        Raises:
            TypeError: If ``other`` is not a schedule.
        """
        here, one = self.total_steps, hold(1.0)
        pairs = zip_longest(self.factors, other.factors, fillvalue=one)
        factors = tuple(chain(before, after, here) for before, after in pairs)
        before, after = self.momentum_track, other.momentum_track
        if before is None and after is not None:
            before = hold(after[0].start)
        elif after is None and before is not None and (held := self.momentum([here])) is not None:
            after = hold(float(held[0]))
        momentum = chain(before, after, here) if before and after else None
        decays = self.weight_decay_track, other.weight_decay_track
        decay = chain(decays[0] or one, decays[1] or one, here) if any(decays) else None
        name = f"{self.name}, then {other.name}"
        return Schedule(name, here + other.total_steps, factors, momentum, decay)

    def __mul__(self, other: Schedule) -> Schedule:
        """Return the product of two multipliers; at most one of them may set the momentum."""
        if not isinstance(other, Schedule):
            return NotImplemented
        for name in ("momentum", "weight_decay"):
            if None not in (getattr(self, f"{name}_track"), getattr(other, f"{name}_track")):
                raise ValueError(
                    f"only one factor of a product may set the {name.replace('_', ' ')}, got two: "
                    f"{self.name} and {other.name}"
                )
        name, steps = f"{self.name} * {other.name}", max(self.total_steps, other.total_steps)
        momentum = self.momentum_track or other.momentum_track
        decay = self.weight_decay_track or other.weight_decay_track
        return Schedule(name, steps, self.factors + other.factors, momentum, decay)

    def with_weight_decay(self, decay: Schedule) -> Schedule:
        """Return this schedule with another one's multiplier applied to the weight decay.

        Args:
            decay: Schedule whose multiplier becomes that of every group's ``weight_decay``.

        Raises:
            ValueError: If ``decay`` is a product.

        Example:
            >>> from lrfast.schedules import cosine, linear
            >>> schedule = cosine(100).with_weight_decay(linear(1.0, 10.0, 100))
            >>> schedule.weight_decay([0, 100]).tolist()
            [1.0, 10.0]
        """
        if len(decay.factors) != 1:
            raise ValueError(f"decay must not be a product, got {decay.name}")
        return replace(self, weight_decay_track=decay.factors[0])

    def lasting(self, steps: int) -> Schedule:
        """Return the same values with another ``total_steps``.

        Args:
            steps: Steps, 1 or more, after which :meth:`then` adds a schedule and plots end.

        Raises:
            ValueError: If ``steps`` is out of range.
        """
        return replace(self, total_steps=check_count("steps", steps))

    def repeat(self, times: int | None = None) -> Schedule:
        """Return this schedule again and again, ``total_steps`` steps each.

        Args:
            times: Cycles, 1 or more, then the last value is held; None, the default: without end.

        Raises:
            ValueError: If ``times`` is out of range, or None for a schedule that repeats already.
        """
        if times is None:
            total, tracks = self.total_steps, [track for _, track in self._tracks()]
            if any(len(t) > 1 or not t[0].is_single or total % t[0].stride for t in tracks):
                raise ValueError(
                    f"times must be a number for a schedule that repeats already, got None for "
                    f"{self.name}"
                )
            periodic = self._mapped(lambda t: (replace(t[0], period=total // t[0].stride),))
            return replace(periodic, name=f"{self.name}, repeated")
        if not is_int(times) or times < 1:
            raise ValueError(f"times must be a whole number, 1 or more, or None, got {times!r}")
        result = self
        for _ in range(times - 1):
            result = result.then(self)
        return replace(result, name=f"{self.name}, {times} times")

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain numbers, strings and lists, for checkpoints and JSON."""
        rate, momentum, decay = self.encode()
        tracks = {"rate": rate, "momentum": momentum, "weight_decay": decay}
        return {"name": self.name, "total_steps": self.total_steps, **tracks}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Return the schedule that :meth:`to_dict` described.

        Args:
            data: The description, also one that went through JSON.

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
        """Return one line per segment: steps, shape, first and last value; printed so, too."""
        lines = [f"{self.name}: {self.total_steps} steps"]
        return "\n".join(lines + segment_lines(self._tracks(), self.total_steps))

    __str__ = describe

    def __repr__(self) -> str:
        return f"Schedule({self.name}, {self.total_steps} steps)"

    def table(
        self, steps: Sequence[int] | None = None, rates: Sequence[float] = ()
    ) -> list[dict[str, float]]:
        """Return one row per step: "step", "factor", and "momentum" and "weight_decay" if set.

        Args:
            steps: Steps to list; None, the default: where a segment begins, the last, the next one.
            rates: Learning rates of the groups, for columns "rate 0" and so on; default none.

        Raises:
            ValueError: If a step is negative.
        """
        if steps is None:
            steps = turning_steps(self._tracks(), self.total_steps)
        factors, momenta, decays = self._evaluate(steps)
        channels = {"factor": factors}
        channels |= {f"rate {index}": factors * rate for index, rate in enumerate(rates)}
        others = {"momentum": momenta, "weight_decay": decays}
        channels |= {name: values for name, values in others.items() if values is not None}
        return [
            {"step": step, **{name: float(values[row]) for name, values in channels.items()}}
            for row, step in enumerate(steps)
        ]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits, the same only for equal schedules."""
        return hashed(self.to_dict())

    def difference(self, other: Schedule) -> str:
        """Return one line for each difference from another schedule, nothing if they are equal.

        Args:
            other: The other schedule.
        """
        names, lengths = (self.name, other.name), (self.total_steps, other.total_steps)
        pairs = {"name": names, "total steps": lengths}
        lines = [f"{key}: {a} against {b}" for key, (a, b) in pairs.items() if a != b]
        end = max(lengths)
        stride = max(end // _SAMPLES, 1)
        steps = np.arange(0, end + stride, stride)
        lines += value_differences(steps, self._evaluate(steps), other._evaluate(steps))
        if not lines and self != other:
            lines.append(f"the tables differ, their values at steps 0 to {end} do not")
        return "\n".join(lines)

    def extend_to(self, total_steps: int, step: int = 0, until: int | None = None) -> Schedule:
        """Return the schedule with another length, the same up to ``step``.

        Everything after ``step`` is stretched, so that the last change comes as much later as the
        total is longer; a segment under way continues from its value. Tables that repeat stay.

        Args:
            total_steps: The new length, 1 or more; it may be shorter.
            step: Current step of the training, 0 or more; default 0.
            until: Step behind ``step``, such as the end of a cycle, from which on nothing is
                stretched, but moved: the cycles after it keep their lengths. None, the default:
                all is stretched.

        Raises:
            ValueError: If an argument is out of range, nothing after ``step`` can be shortened, or
                a lookup would have to be stretched.

        Example:
            >>> from lrfast import schedules
            >>> schedules.linear(1.0, 0.0, 4).extend_to(6, step=2).values(range(7)).tolist()
            [1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0]
        """
        total_steps = check_count("total_steps", total_steps)
        step = check_count("step", step, least=0)
        tables = [table for _, track in self._tracks() for table in track]
        if any(table.stride > 1 for table in tables):
            raise ValueError(
                "schedule must be extended in epochs before per_epoch(..., stepwise=True), got "
                f"{self.name} of held values"
            )
        plain = [(t.begin, s) for t in tables if t.is_plain for s in t.segments]
        last = max((at + (s.t0 + s.span if s.span else s.begin) for at, s in plain), default=0.0)
        more = total_steps - self.total_steps
        if until is not None:
            if not is_int(until) or not step < until <= self.total_steps:
                wanted = f"a whole number from {step + 1} to {self.total_steps}, or None"
                raise ValueError(f"until must be {wanted}, got {short_repr(until)}")
            last = until
        end = last + more
        if last <= step:
            return replace(self, total_steps=total_steps)
        if end <= step:
            raise ValueError(
                f"total_steps must leave the last change behind step {step}, got {total_steps}, "
                f"which puts it at {end:g}"
            )
        factor = (end - step) / (last - step)

        def clock(time: float) -> float:
            if time <= step:
                return time
            if until is not None and time >= until:
                return time + more
            moved = step + (time - step) * factor
            return float(round(moved)) if time == round(time) else moved

        def extend(track: Track) -> Track:
            tables = track if until is None else _unrolled(track, until)
            return tuple(_on_clock(table, clock, step) for table in tables)

        extended = self._mapped(extend)
        return replace(extended, total_steps=total_steps)

    @overload
    def plot(self, path: str | Path | None = None, *, ax: None = None) -> Figure: ...
    @overload
    def plot(self, path: str | Path | None = None, *, ax: Axes) -> Axes: ...
    def plot(self, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure | Axes:
        """Return the figure of :func:`lrfast.plot.plot_schedule`: multiplier, momentum, decay.

        Args:
            path: File to save the figure to, in the format of its suffix; default None.
            ax: Axes of matplotlib to draw the multiplier into, which are returned; None, the
                default: a new figure.
        """
        return plot_schedule(self, path, ax=ax)

    def encode(self) -> EncodedSchedule:
        """Return the tracks of rate, momentum and weight decay as the engine reads them."""
        return (
            [encode_track(factor) for factor in self.factors],
            None if self.momentum_track is None else encode_track(self.momentum_track),
            None if self.weight_decay_track is None else encode_track(self.weight_decay_track),
        )

    def _tracks(self) -> list[tuple[str, Track]]:
        """Return all tracks, each with the label that descriptions give it."""
        others = (("momentum", self.momentum_track), ("decay x", self.weight_decay_track))
        set_ones = [(label, track) for label, track in others if track is not None]
        return [*(("rate x", factor) for factor in self.factors), *set_ones]

    def _mapped(self, change: Callable[[Track], Track]) -> Schedule:
        """Return this schedule with all of its tracks changed."""
        return replace(
            self,
            factors=tuple(map(change, self.factors)),
            momentum_track=self.momentum_track and change(self.momentum_track),
            weight_decay_track=self.weight_decay_track and change(self.weight_decay_track),
        )

    def _evaluate(self, steps: Steps) -> tuple[Floats, Floats | None, Floats | None]:
        array = np.asarray(steps)
        if array.size and array.dtype.kind not in "iuf":
            raise TypeError(f"steps must be whole numbers, got {short_repr(steps)}")
        array = array.astype(np.int64)
        if array.size and array.min() < 0:
            raise ValueError(f"steps must not be negative, got {array.min()}")
        rates, momenta, decays = extension().evaluate_schedule(self.encode(), array)
        return rates, momenta, decays


@overload
def plot_schedule(
    schedule: Schedule, path: str | Path | None = None, rates: Rates = (1.0,), *, ax: None = None
) -> Figure: ...
@overload
def plot_schedule(
    schedule: Schedule, path: str | Path | None = None, rates: Rates = (1.0,), *, ax: Axes
) -> Axes: ...
@checked
def plot_schedule(
    schedule: Schedule,
    path: str | Path | None = None,
    rates: Rates = (1.0,),
    *,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of a schedule over its steps, with momentum and weight decay if it sets them.

    Args:
        schedule: The schedule.
        path: File to save the figure to, in the format of its suffix; default None.
        rates: Learning rates of the groups, body first; (1.0,), the default: the multiplier itself.
        ax: Axes of matplotlib to draw the learning rates into, which are returned; None, the
            default: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
    """
    steps = np.arange(schedule.total_steps)
    multipliers, momenta, decays = schedule._evaluate(steps)
    channels = {"momentum": momenta, "weight decay, multiplier": decays}
    others = {name: values for name, values in channels.items() if values is not None}
    main, *panels = step_panels(ax, 1 + len(others))
    for group, rate in enumerate(rates):
        style = line_style(group, len(rates), len(steps))
        main.plot(steps, rate * multipliers, **style, label=f"group {group}")
    if len(set(rates)) > 1:
        main.set_yscale("log")
        main.legend(fontsize="small")
    main.set_ylabel("learning rate" if rates != (1.0,) else "multiplier")
    main.set_title(schedule.name)
    for axes, (name, values) in zip(panels, others.items(), strict=ax is None):
        axes.plot(steps, values, "k--")
        axes.set_ylabel(name)
    return finish(main, path, ax)


@checked
def per_epoch(schedule: Schedule, steps_per_epoch: int, *, stepwise: bool = False) -> Schedule:
    """Return a schedule made in epochs, stretched to optimizer steps.

    Every epoch begins with the value that the schedule has for it; steps within are interpolated.

    Args:
        schedule: Schedule made with epochs in place of steps; no lookup, unless ``stepwise``.
        steps_per_epoch: Optimizer steps of an epoch, 1 or more.
        stepwise: Whether an epoch's steps hold its first value, as if torch's scheduler stepped
            once per epoch; default False.

    Raises:
        ValueError: If ``steps_per_epoch`` is out of range, or a lookup would have to be stretched.

    Example:
        >>> from lrfast import schedules
        >>> line = schedules.linear(0.0, 1.0, 2)
        >>> schedules.per_epoch(line, 2).values(range(5)).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> schedules.per_epoch(line, 2, stepwise=True).values(range(5)).tolist()
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """
    scale = check_count("steps_per_epoch", steps_per_epoch)

    def stretched(table: Table) -> Table:
        if stepwise or table.stride > 1:  # stairs stay stairs
            return replace(table, begin=table.begin * scale, stride=table.stride * scale)
        return replace(
            table,
            segments=tuple(_moved(s, lambda step: step * scale) for s in table.segments),
            begin=table.begin * scale,
            period=table.period * scale,
            decay=table.decay ** (1 / scale),
        )

    tracks = schedule._mapped(lambda track: tuple(map(stretched, track)))
    return replace(tracks, total_steps=schedule.total_steps * scale)


def first_cycle(schedule: Schedule) -> int:
    """Return the step at which a second cycle begins, or the total if there is none."""
    end = int(cycle_ends(schedule, schedule.total_steps)[0])
    tables = [table for track in schedule.factors for table in track]
    is_lowest_in_next = end < schedule.total_steps and any(_begins(t, end - 1) for t in tables)
    return end - is_lowest_in_next


def _begins(table: Table, step: int) -> bool:
    """Whether a segment begins at a step."""
    at, period = step - table.begin, table.period * table.stride
    return at >= 0 and (at % period if period else at) in {
        segment.begin * table.stride for segment in table.segments
    }


def _unrolled(track: Track, until: int) -> Track:
    """Return the track with its first table plain up to a step at which that repeats."""
    table, *others = track
    if table.period == 0 or not replace(table, period=0).is_plain or until % table.period:
        return track
    passes = range(0, until, table.period)
    plain = Table(tuple(segment.shifted(at) for at in passes for segment in table.segments))
    goes_on = not others or others[0].begin > until
    return (plain, *([replace(table, begin=until)] if goes_on else []), *others)


def cycle_ends(schedule: Schedule, total_steps: int) -> npt.NDArray[np.int64]:
    """Return the counts of steps after which a cycle of the schedule is over, the last included."""
    values = schedule.values(np.arange(total_steps))
    change = np.diff(values)
    moving = np.flatnonzero(change)
    turns = moving[1:][(change[moving[:-1]] < 0) & (change[moving[1:]] > 0)]
    return np.append(turns + 1, total_steps)


def _on_clock(table: Table, clock: Clock, step: int) -> Table:
    begin, segments = int(clock(table.begin)), table.segments
    if table.is_plain:
        absolute = [segment.shifted(table.begin) for segment in segments]
        moved = [part for s in absolute for part in _split(s, clock, step)]
        segments = tuple(segment.shifted(-begin) for segment in moved)
    return replace(table, begin=begin, segments=segments)


def _split(segment: Segment, clock: Clock, step: int) -> list[Segment]:
    """Return the segment on the new clock, in two parts if it is under way at the step."""
    end = segment.t0 + segment.span
    if end <= step:
        return [replace(segment, begin=int(clock(segment.begin)))]
    if segment.t0 >= step:
        return [_moved(segment, clock)]
    _refuse_lookup(segment)
    pace = (clock(end) - step) / (end - step)
    t0, begin = step - (step - segment.t0) * pace, max(segment.begin, step)
    rest = replace(segment, begin=begin, t0=t0, span=segment.span * pace)
    return [segment, rest] if segment.begin < step else [rest]


def _moved(segment: Segment, clock: Clock) -> Segment:
    _refuse_lookup(segment)
    t0, end = clock(segment.t0), clock(segment.t0 + segment.span)
    return replace(segment, begin=round(clock(segment.begin)), t0=t0, span=end - t0)


def _refuse_lookup(segment: Segment) -> None:
    if segment.shape == "lookup":
        raise ValueError("schedule must be one of formulas to be stretched, got one with a lookup")
