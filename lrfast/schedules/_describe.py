"""Schedules in words and tables: their segments, their fingerprint, how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lrfast.schedules._segments import Table, Track

Values = Sequence[npt.NDArray[np.float64] | None]


def segment_lines(tracks: Iterable[tuple[str, Track]], total_steps: int) -> list[str]:
    """Return one line per segment of the labelled tracks: steps, shape, first and last value."""
    lines = []
    for label, track in tracks:
        ends = [table.begin for table in track[1:]] + [total_steps]
        for table, end in zip(track, ends, strict=True):
            lines += _table_lines(label, table, end)
    return lines


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


def turning_steps(tracks: Iterable[tuple[str, Track]], total_steps: int) -> list[int]:
    """Return the steps at which a segment begins, the last step and the one after it."""
    begins = {
        table.begin + segment.begin * table.stride
        for _, track in tracks
        for table in track
        for segment in table.segments
    }
    return sorted({s for s in begins if s <= total_steps} | {0, total_steps - 1, total_steps})


def hashed(data: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of the hash of plain data, whose numbers count as floats."""
    # JSON and checkpoints may restore integers as floats, and numbers of numpy as those of Python.
    floats = json.loads(json.dumps(data, default=float), parse_int=float)
    return hashlib.sha256(json.dumps(floats, sort_keys=True).encode()).hexdigest()[:16]


def value_differences(steps: npt.NDArray[np.int64], ones: Values, others: Values) -> list[str]:
    """Return one line for each of rate, momentum and decay that differs at the steps."""
    lines = []
    for label, one, other in zip(("rate", "momentum", "decay"), ones, others, strict=True):
        if one is None and other is None:
            continue
        if one is None or other is None:
            lines.append(f"{label}: only {'the second' if one is None else 'the first'} sets it")
            continue
        gaps = np.abs(one - other)
        if gaps.any():
            first, most = int(np.argmax(gaps > 0)), int(np.argmax(gaps))
            lines.append(
                f"{label}: differs from step {steps[first]}, most at step {steps[most]}: "
                f"{one[most]:.6g} against {other[most]:.6g}"
            )
    return lines
