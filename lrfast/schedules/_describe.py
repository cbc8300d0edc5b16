"""What a schedule will do, in words and tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfast.schedules._segments import Table, Track

if TYPE_CHECKING:
    from lrfast.schedules._schedule import Schedule

_SAMPLES = 100_000  # steps at which two schedules are compared


def describe(schedule: Schedule) -> str:
    """Return one line per segment: steps, shape, first and last value."""
    lines = [f"{schedule.name}: {schedule.total_steps} steps"]
    tracks: list[tuple[str, Track | None]] = [("rate x", track) for track in schedule.factors]
    tracks += [("momentum", schedule.momentum_track), ("decay x", schedule.weight_decay_track)]
    for label, track in tracks:
        if track is None:
            continue
        ends = [table.begin for table in track[1:]] + [schedule.total_steps]
        for table, end in zip(track, ends, strict=True):
            lines += _table_lines(label, table, end)
    return "\n".join(lines)


def _table_lines(label: str, table: Table, end: int) -> list[str]:
    stride = table.stride
    begins = [table.begin + segment.begin * stride for segment in table.segments]
    stop = table.begin + table.period * stride if table.period else end
    lines = [
        f"  {label:8} steps {begin:>6} to {to:>6}  {segment.shape:11} "
        f"{segment.first:.6g} -> {segment.last:.6g}"
        for segment, begin, to in zip(table.segments, begins, [*begins[1:], stop], strict=True)
    ]
    if not table.is_single:
        lines.append(
            f"  {'':8} every {table.period * stride} steps, x {table.gain:.6g} per cycle, "
            f"x {table.decay:.6g} per {'step' if stride == 1 else f'{stride} steps'}, towards "
            f"{table.floor:.6g}"
        )
    if stride > 1:
        lines.append(f"  {'':8} held for {stride} steps each")
    return lines


def table(
    schedule: Schedule, steps: Sequence[int] | None, rates: Sequence[float]
) -> list[dict[str, float]]:
    """Return one row per step: step, factor, rate of each group, momentum and decay if set."""
    if steps is None:
        steps = _turns(schedule)
    columns = {"factor": schedule.values(steps)}
    for index, rate in enumerate(rates):
        columns[f"rate {index}"] = columns["factor"] * rate
    for name in ("momentum", "weight_decay"):
        values = getattr(schedule, name)(steps)
        if values is not None:
            columns[name] = values
    return [
        {"step": step, **{name: float(values[row]) for name, values in columns.items()}}
        for row, step in enumerate(steps)
    ]


def fingerprint(schedule: Schedule) -> str:
    """Return 16 hexadecimal digits of the hash of all that the schedule consists of."""
    text = json.dumps(_plain(schedule.to_dict()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(one: Schedule, other: Schedule) -> str:
    """Return in words what differs, one line each; nothing if the two are equal."""
    lines = []
    if one.name != other.name:
        lines.append(f"name: {one.name} against {other.name}")
    if one.total_steps != other.total_steps:
        lines.append(f"total steps: {one.total_steps} against {other.total_steps}")
    end = max(one.total_steps, other.total_steps)
    stride = max(end // _SAMPLES, 1)
    steps = np.arange(0, end + stride, stride)
    for label, name in (("rate", "values"), ("momentum", "momentum"), ("decay", "weight_decay")):
        ours, theirs = getattr(one, name)(steps), getattr(other, name)(steps)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None:
            lines.append(f"{label}: only {'the second' if ours is None else 'the first'} sets it")
            continue
        gaps = np.abs(ours - theirs)
        if gaps.any():
            first, most = int(np.argmax(gaps > 0)), int(np.argmax(gaps))
            lines.append(
                f"{label}: differs from step {steps[first]}, most at step {steps[most]}: "
                f"{ours[most]:.6g} against {theirs[most]:.6g}"
            )
    if not lines and one != other:
        lines.append(f"the tables differ, their values at steps 0 to {end} do not")
    return "\n".join(lines)


def _turns(schedule: Schedule) -> list[int]:
    """The steps at which a segment begins, the last step and the one after it."""
    total = schedule.total_steps
    tracks = [*schedule.factors, schedule.momentum_track, schedule.weight_decay_track]
    begins = {
        table.begin + segment.begin * table.stride
        for track in tracks
        for table in track or ()
        for segment in table.segments
    }
    return sorted({step for step in begins if step <= total} | {0, total - 1, total})


def _plain(value: Any) -> Any:
    """All numbers as floats, so that what JSON or a checkpoint gave back has the same hash."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str) else float(value)
