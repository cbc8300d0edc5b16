"""What a schedule will do, in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrfast.schedules._tables import Table, Track

if TYPE_CHECKING:
    from lrfast.schedules._schedule import Schedule


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
    stop = table.begin + table.period if table.period else end
    ends = [table.begin + segment.begin for segment in table.segments[1:]] + [stop]
    lines = [
        f"  {label:8} steps {table.begin + segment.begin:>6} to {to:>6}  {segment.shape:11} "
        f"{segment.first:.6g} -> {segment.last:.6g}"
        for segment, to in zip(table.segments, ends, strict=True)
    ]
    if not table.is_plain:
        lines.append(
            f"  {'':8} every {table.period} steps, x {table.gain:.6g} per cycle, "
            f"x {table.decay:.6g} per step, towards {table.floor:.6g}"
        )
    return lines
