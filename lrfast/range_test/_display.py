"""Suggestions and loss curves in plain text, for terminals and logs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lrfast._utils.figures import height_of_curve
from lrfast._utils.validation import check_count
from lrfast.range_test._sweep import FloatArray
from lrfast.suggest import Suggestion

_LABEL_COLUMNS = 9  # of a decade's label with the space that keeps the next one apart

# Side, corner, floor and tick of the axes; line and arrow at a learning rate.
_UNICODE, _ASCII = tuple("│└─┴┊▲"), tuple("|+-+:^")

# Unicode numbers the dots of a braille character down the left column, then the right, and the
# fourth row, which came later, at the end.
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


class _Axis(NamedTuple):
    """A logarithmic axis of learning rates."""

    first: float  # log10 of the first rate
    last: float
    columns: int

    def place(self, log_rates: FloatArray) -> FloatArray:
        """Return positions on the axis, from 0 to 1."""
        if self.last == self.first:
            return np.full_like(log_rates, 0.5)
        return (log_rates - self.first) / (self.last - self.first)

    def column(self, log_rate: float) -> int:
        return int(np.rint(self.place(np.array(log_rate)) * (self.columns - 1)))


def lr_text(suggestion: Suggestion) -> str:
    """Return the suggested learning rate, or pair of them, or "none"."""
    if suggestion.lr is None:
        return "none"
    if suggestion.base_lr is None:
        return f"{suggestion.lr:.1e}"
    return f"{suggestion.base_lr:.1e} to {suggestion.lr:.1e}"


def terminal_plot(
    lrs: FloatArray,
    losses: FloatArray,
    caption: str,
    lr: float | None,
    width: int,
    height: int,
    ascii: bool,
) -> str:
    """Return lines of text that draw the losses and mark a learning rate."""
    check_count("width", width, least=32)
    check_count("height", height, least=8)
    if len(lrs) == 0:
        return "no points to draw"
    if not ((np.diff(lrs) >= 0).all() and lrs[0] > 0 and np.isfinite(lrs).all()):
        raise ValueError("lrs must be finite, above 0 and rise to be drawn")
    side, corner, edge, tick, guide, arrow = _ASCII if ascii else _UNICODE
    rows = height - 3
    # Without a finite loss nothing is drawn: no loss has a place between limits that are NaN.
    low, high = height_of_curve(losses) or (math.nan, math.nan)
    labels = [""] * rows
    if high > low:
        for row in (0, rows // 2, rows - 1):
            labels[row] = f"{high + (low - high) * row / (rows - 1):.3g}"
    margin = max(map(len, labels)) + 1
    axis = _Axis(math.log10(lrs[0]), math.log10(lrs[-1]), width - margin - 1)
    # Losses beyond are drawn no further than a canvas away, infinite ones too.
    y = (high - np.clip(losses, low - (high - low), high + (high - low))) / (high - low)
    canvas = _canvas(axis.place(np.log10(lrs)), y, rows, axis.columns, ascii)
    floor, rates = _floor(lrs, axis, edge, tick)
    if lr is not None and lrs[0] <= lr <= lrs[-1]:
        at = axis.column(math.log10(lr))
        floor = floor[:at] + arrow + floor[at + 1 :]
        caption = f"{arrow} {caption}"
        canvas = [row[:at] + row[at].replace(" ", guide) + row[at + 1 :] for row in canvas]
    labelled = zip(labels, canvas, strict=True)
    lines = [f"{label:>{margin}}{side}{row}" for label, row in labelled]
    lines += [" " * margin + corner + floor, " " * margin + " " + rates]
    lines += [" " * min(margin + 1, width - len(caption)) + caption]
    return "\n".join(line.rstrip() for line in lines)


def _canvas(x: FloatArray, y: FloatArray, rows: int, columns: int, ascii: bool) -> list[str]:
    """Return a curve, from 0 to 1 either way and drawn from the top, as rows of equal length."""
    down, across = (1, 1) if ascii else (4, 2)  # dots of one character
    dots = np.zeros((rows * down, columns * across), dtype=bool)
    _draw(dots, x * (dots.shape[1] - 1), y * (len(dots) - 1))
    cells = dots.reshape(rows, down, columns, across)
    if ascii:
        return ["".join("*" if cell else " " for cell in row) for row in cells[:, 0, :, 0]]
    codes = (cells * _BRAILLE[:, None, :]).sum(axis=(1, 3))
    return ["".join(chr(0x2800 + code) if code else " " for code in row) for row in codes]


def _draw(dots: npt.NDArray[np.bool_], x: FloatArray, y: FloatArray) -> None:
    """Set the dots on the lines between neighbours; a NaN leaves a gap."""
    for k in np.flatnonzero(~np.isnan(y)):
        end = k + 1 if k + 1 < len(y) and not np.isnan(y[k + 1]) else k
        count = int(max(abs(x[end] - x[k]), abs(y[end] - y[k]))) + 2
        columns = np.rint(np.linspace(x[k], x[end], count)).astype(int)
        rows = np.rint(np.linspace(y[k], y[end], count)).astype(int)
        inside = (rows >= 0) & (rows < len(dots)) & (columns >= 0) & (columns < dots.shape[1])
        dots[rows[inside], columns[inside]] = True


def _floor(lrs: FloatArray, axis: _Axis, edge: str, tick: str) -> tuple[str, str]:
    """Return the axis with a tick at each label, and the labels: decades, or else both ends."""
    decades = axis.last - axis.first
    stride = max(math.ceil(_LABEL_COLUMNS * decades / axis.columns), 1)
    exponents = range(math.ceil(axis.first), math.floor(axis.last) + 1)
    ticks = [(float(power), f"1e{power:+03d}") for power in exponents if power % stride == 0]
    if len(ticks) < 2:
        ends = dict.fromkeys(lrs[[0, -1]].tolist())
        ticks = [(math.log10(rate), f"{rate:.1e}") for rate in ends]
    floor = [edge] * axis.columns
    labels = [" "] * axis.columns
    for power, label in ticks:
        at = axis.column(power)
        floor[at] = tick
        start = min(max(at - len(label) // 2, 0), axis.columns - len(label))
        labels[start : start + len(label)] = label
    return "".join(floor), "".join(labels)
