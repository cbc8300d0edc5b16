"""Loss curves of range tests in plain text, for terminals and logs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lrfast.plot import limits
from lrfast.range_test._sweep import FloatArray
from lrfast.range_test._text import rate_text

if TYPE_CHECKING:
    from lrfast.range_test._result import RangeTest

_LABEL_COLUMNS = 9  # of a decade's label with the space that keeps the next one apart


class _Glyphs(NamedTuple):
    dots: tuple[int, int]  # of one character: down, across
    side: str
    corner: str
    floor: str
    tick: str
    rate: str
    arrow: str


_UNICODE = _Glyphs((4, 2), "│", "└", "─", "┴", "┊", "▲")
_ASCII = _Glyphs((1, 1), "|", "+", "-", "+", ":", "^")
# Unicode numbers the dots of a braille character down the left column, then the right, and the
# fourth row, which came later, at the end.
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


class _Axis(NamedTuple):
    """Where rates stand on a logarithmic axis of so many positions."""

    first: float  # log10 of the first rate
    last: float
    positions: int

    def place(self, log_rates: FloatArray) -> FloatArray:
        if self.last == self.first:
            return np.full_like(log_rates, 0.5 * (self.positions - 1))
        return (log_rates - self.first) / (self.last - self.first) * (self.positions - 1)

    def column(self, log_rate: float) -> int:
        return int(np.rint(self.place(np.array(log_rate))))


def terminal_plot(result: RangeTest, width: int, height: int, ascii: bool) -> str:
    """Return lines that draw the smoothed losses over the rates and mark the chosen rate.

    Args:
        result: What :func:`lrfast.lr_find` returned.
        width: Columns, 32 or more.
        height: Lines, 8 or more.
        ascii: Whether to use ASCII characters only.

    Returns:
        The lines, without colours.

    Raises:
        ValueError: If there is no room, or the rates do not rise.
    """
    for name, value, least in (("width", width, 32), ("height", height, 8)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    if len(result.lrs) == 0:
        return "no points to draw"
    rises = bool((np.diff(result.lrs) >= 0).all() and result.lrs[0] > 0)
    if not (rises and np.isfinite(result.lrs).all()):
        raise ValueError("lrs must be finite, above 0 and rise to be drawn")
    glyphs = _ASCII if ascii else _UNICODE
    rows = height - 3
    labels = _loss_labels(result, rows)
    margin = max(map(len, labels)) + 1
    axis = _axis(result, width - margin - 1)
    canvas = _canvas(result, rows, axis.positions, glyphs)
    floor, rates = _floor(result, axis, glyphs)
    chosen = result.suggestion
    caption = f"{result.rule}: {rate_text(chosen)}"
    if chosen.lr is not None and result.lrs[0] <= chosen.lr <= result.lrs[-1]:
        at = axis.column(math.log10(chosen.lr))
        floor = floor[:at] + glyphs.arrow + floor[at + 1 :]
        caption = f"{glyphs.arrow} {caption}"
        canvas = [
            line[:at] + line[at].replace(" ", glyphs.rate) + line[at + 1 :] for line in canvas
        ]
    body = [
        f"{label:>{margin}}{glyphs.side}{line}" for label, line in zip(labels, canvas, strict=True)
    ]
    indent = " " * margin
    caption = " " * min(margin + 1, width - len(caption)) + caption
    lines = [*body, f"{indent}{glyphs.corner}{floor}", f"{indent} {rates}", caption]
    return "\n".join(line.rstrip() for line in lines)


def _loss_labels(result: RangeTest, rows: int) -> list[str]:
    """Return what stands beside each row: the loss at the top, the middle and the bottom."""
    labels = [""] * rows
    span = limits(result.smoothed)
    if span is not None:
        for row in (0, rows // 2, rows - 1):
            labels[row] = f"{span[1] + (span[0] - span[1]) * row / (rows - 1):.3g}"
    return labels


def _canvas(result: RangeTest, rows: int, columns: int, glyphs: _Glyphs) -> list[str]:
    """Return the curve, one string of equal length per row."""
    down, across = glyphs.dots
    dots = np.zeros((rows * down, columns * across), dtype=bool)
    span = limits(result.smoothed)
    if span is not None:
        low, high = span
        # What lies beyond is drawn no further than a canvas away, infinite losses too.
        losses = np.clip(result.smoothed, low - (high - low), high + (high - low))
        y = (high - losses) / (high - low) * (len(dots) - 1)
        _draw(dots, _axis(result, columns * across).place(np.log10(result.lrs)), y)
    cells = dots.reshape(rows, down, columns, across)
    if glyphs.dots == (1, 1):
        return ["".join("*" if cell else " " for cell in row) for row in cells[:, 0, :, 0]]
    codes = (cells * _BRAILLE[:, None, :]).sum(axis=(1, 3))
    return ["".join(chr(0x2800 + code) if code else " " for code in row) for row in codes]


def _axis(result: RangeTest, positions: int) -> _Axis:
    return _Axis(math.log10(result.lrs[0]), math.log10(result.lrs[-1]), positions)


def _draw(dots: npt.NDArray[np.bool_], x: FloatArray, y: FloatArray) -> None:
    """Set the dots on the lines between neighbours; a NaN leaves a gap."""
    for k in np.flatnonzero(~np.isnan(y)):
        end = k + 1 if k + 1 < len(y) and not np.isnan(y[k + 1]) else k
        count = int(max(abs(x[end] - x[k]), abs(y[end] - y[k]))) + 2
        columns = np.rint(np.linspace(x[k], x[end], count)).astype(int)
        rows = np.rint(np.linspace(y[k], y[end], count)).astype(int)
        inside = (rows >= 0) & (rows < len(dots)) & (columns >= 0) & (columns < dots.shape[1])
        dots[rows[inside], columns[inside]] = True


def _floor(result: RangeTest, axis: _Axis, glyphs: _Glyphs) -> tuple[str, str]:
    """Return the axis with a tick at each label, and the labels: decades, or else both ends."""
    decades = axis.last - axis.first
    stride = max(math.ceil(_LABEL_COLUMNS * decades / axis.positions), 1)
    exponents = range(math.ceil(axis.first), math.floor(axis.last) + 1)
    ticks = [(float(power), f"1e{power:+03d}") for power in exponents if power % stride == 0]
    if len(ticks) < 2:
        ends = dict.fromkeys(result.lrs[[0, -1]].tolist())
        ticks = [(math.log10(rate), f"{rate:.1e}") for rate in ends]
    floor = [glyphs.floor] * axis.positions
    labels = [" "] * axis.positions
    for power, label in ticks:
        at = axis.column(power)
        floor[at] = glyphs.tick
        start = min(max(at - len(label) // 2, 0), axis.positions - len(label))
        labels[start : start + len(label)] = label
    return "".join(floor), "".join(labels)
