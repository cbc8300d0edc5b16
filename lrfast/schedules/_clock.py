"""Schedules on another clock: counted in epochs, or extended in mid-course."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lrfast.schedules._checks import check_steps
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Table, Track

Clock = Callable[[float], float]


def per_epoch(schedule: Schedule, steps_per_epoch: int, *, stepwise: bool = False) -> Schedule:
    """Return a schedule made in epochs, stretched to steps: its curve, or its stairs.

    Every epoch begins with the value that the schedule has for it. A step in the middle of an epoch
    has the value in the middle of two: the curve. With ``stepwise`` it has that of the epoch's
    first step, as where torch's schedulers step once per epoch.

    Args:
        schedule: Made with epochs where its maker says steps; no lookup, unless ``stepwise``.
        steps_per_epoch: Optimizer steps of an epoch, 1 or more.
        stepwise: Whether each epoch holds one value.

    Raises:
        ValueError: If ``steps_per_epoch`` is out of range, or a lookup would have to be stretched.

    Example:
        >>> from lrfast import schedules
        >>> schedule = schedules.per_epoch(schedules.multistep([1, 3], 0.5), steps_per_epoch=2)
        >>> schedule.values(range(7)).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]
        >>> line = schedules.linear(0.0, 1.0, 2)
        >>> schedules.per_epoch(line, 2).values(range(5)).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> schedules.per_epoch(line, 2, stepwise=True).values(range(5)).tolist()
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """
    scale = check_steps("steps_per_epoch", steps_per_epoch)

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

    tracks = _mapped(schedule, lambda track: tuple(stretched(table) for table in track))
    return replace(tracks, total_steps=schedule.total_steps * scale)


def extend_to(schedule: Schedule, total_steps: int, step: int) -> Schedule:
    """See :meth:`Schedule.extend_to`."""
    total_steps = check_steps("total_steps", total_steps)
    step = check_steps("step", step, least=0)
    if any(table.stride > 1 for track in _tracks(schedule) for table in track):
        raise ValueError(
            "schedule must be extended in epochs before per_epoch(..., stepwise=True), got "
            f"{schedule.name} of held values"
        )
    last = max((_last_change(track) for track in _tracks(schedule)), default=0.0)
    end = last + total_steps - schedule.total_steps
    if last <= step:
        return replace(schedule, total_steps=total_steps)
    if end <= step:
        raise ValueError(
            f"total_steps must leave the last change behind step {step}, got {total_steps}, which "
            f"puts it at {end:g}"
        )
    factor = (end - step) / (last - step)

    def clock(time: float) -> float:
        if time <= step:
            return time
        moved = step + (time - step) * factor
        return float(round(moved)) if time == round(time) else moved

    extended = _mapped(schedule, lambda track: _on_clock(track, clock, step))
    return replace(extended, total_steps=total_steps)


def _on_clock(track: Track, clock: Clock, step: int) -> Track:
    tables = []
    for table in track:
        begin = int(clock(table.begin))
        segments = table.segments
        if table.is_plain:
            absolute = [segment.shifted(table.begin) for segment in segments]
            moved = [part for s in absolute for part in _split(s, clock, step)]
            segments = tuple(segment.shifted(-begin) for segment in moved)
        tables.append(replace(table, begin=begin, segments=segments))
    return tuple(tables)


def _split(segment: Segment, clock: Clock, step: int) -> list[Segment]:
    """The segment on the new clock; one under way at ``step`` goes on from where it is."""
    end = segment.t0 + segment.span
    if end <= step:
        return [replace(segment, begin=int(clock(segment.begin)))]
    if segment.t0 >= step:
        return [_moved(segment, clock)]
    pace = (clock(end) - step) / (end - step)
    rest = replace(
        segment,
        begin=max(segment.begin, step),
        t0=step - (step - segment.t0) * pace,
        span=segment.span * pace,
    )
    _refuse_lookup(segment)
    return [segment, rest] if segment.begin < step else [rest]


def _moved(segment: Segment, clock: Clock) -> Segment:
    _refuse_lookup(segment)
    t0 = clock(segment.t0)
    span = clock(segment.t0 + segment.span) - t0
    return replace(segment, begin=round(clock(segment.begin)), t0=t0, span=span)


def _refuse_lookup(segment: Segment) -> None:
    if segment.shape == "lookup":
        raise ValueError("schedule must be one of formulas to be stretched, got one with a lookup")


def _last_change(track: Track) -> float:
    """Where the last of its plain tables comes to rest; 0 if none moves."""
    ends = [
        table.begin + (segment.t0 + segment.span if segment.span else segment.begin)
        for table in track
        if table.is_plain
        for segment in table.segments
    ]
    return max(ends, default=0.0)


def _tracks(schedule: Schedule) -> list[Track]:
    others = (schedule.momentum_track, schedule.weight_decay_track)
    return [*schedule.factors, *(track for track in others if track is not None)]


def _mapped(schedule: Schedule, change: Callable[[Track], Track]) -> Schedule:
    momentum, decay = schedule.momentum_track, schedule.weight_decay_track
    return replace(
        schedule,
        factors=tuple(change(track) for track in schedule.factors),
        momentum_track=None if momentum is None else change(momentum),
        weight_decay_track=None if decay is None else change(decay),
    )
