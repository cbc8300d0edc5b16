"""The table of a stage's epochs, as the fine-tuner prints it row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lrfast._utils.figures import FloatArray
from lrfast._utils.tables import without_middle

_MOST_COLUMNS = 6  # of numbers: with the epoch and its time, 78 characters at most
_MOST_ROWS = 20


class DrawnStage(Protocol):
    """The part of a :class:`lrfast.Stage` that its table shows."""

    @property
    def losses(self) -> FloatArray: ...
    @property
    def rates(self) -> FloatArray: ...
    @property
    def epochs(self) -> tuple[dict[str, float], ...]: ...


def epoch_table(stage: DrawnStage, seconds: Sequence[float] = ()) -> list[str]:
    """Return a header and one line per epoch, none longer than 80 characters.

    An epoch's training loss is the mean of its losses, its learning rates are those of its last
    step, of body and head. Measures that find no room are named in :func:`left_out`.

    Args:
        stage: A stage that has ended, or that trains.
        seconds: Duration of each epoch, in seconds; empty (default) for no such column.
    """
    several = stage.rates.shape[1] > 1
    measures = _measures(stage)[: _room(stage)]
    names = ["train_loss", *measures, *(("lr_body", "lr_head") if several else ("lr",))]
    lines = ["epoch" + "".join(f" {_clipped(name):>10}" for name in names)]
    first = 0
    for index, row in enumerate(stage.epochs):
        last = int(row["step"])
        cells = [_number(float(np.mean(stage.losses[first:last])) if last > first else np.nan)]
        cells += [_number(row.get(name, np.nan)) for name in measures]
        lrs = stage.rates[last - 1] if last > first else np.full(stage.rates.shape[1], np.nan)
        shown = lrs[[0, -1]] if several else lrs
        cells += ["frozen" if np.isnan(lr) else f"{lr:.1e}" for lr in shown]
        lines.append(f"{index + 1:>5}" + "".join(f" {cell:>10}" for cell in cells))
        first = last
    if seconds:
        times = ["time", *(f"{int(s) // 60}:{int(s) % 60:02d}" for s in seconds)]
        lines = [f"{line}  {time:>5}" for line, time in zip(lines, times, strict=True)]
    return lines


def left_out(stage: DrawnStage) -> list[str]:
    """Return the measures for which :func:`epoch_table` has no room."""
    return _measures(stage)[_room(stage) :]


def shortened(lines: list[str]) -> list[str]:
    """Return a table without its middle, if it is long."""
    return [*lines[:1], *without_middle(lines[1:], _MOST_ROWS, "  ...")]


def _measures(stage: DrawnStage) -> list[str]:
    return [name for name in (stage.epochs[0] if stage.epochs else ()) if name != "step"]


def _room(stage: DrawnStage) -> int:
    return _MOST_COLUMNS - 1 - min(stage.rates.shape[1], 2)


def _clipped(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"


def _number(value: float) -> str:
    return f"{value:.4f}" if not np.isfinite(value) or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
