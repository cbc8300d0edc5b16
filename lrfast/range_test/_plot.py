"""Figures of range tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, overload

import numpy as np

from lrfast._utils.arguments import checked
from lrfast._utils.figures import (
    LINES,
    MARKERS,
    centred_average,
    finish,
    height_of_curve,
    legend_outside,
    limit_height,
    limits,
    line_style,
    lr_ticks,
    panels_of,
)
from lrfast._utils.validation import check_count
from lrfast.range_test._display import lr_text
from lrfast.range_test._sweep import FloatArray
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

File: TypeAlias = str | Path | None
Labels: TypeAlias = Sequence[str] | None
Rules: TypeAlias = str | Sequence[str] | None


class DrawnTest(Protocol):
    """The part of a :class:`lrfast.RangeTest` that is drawn."""

    @property
    def lrs(self) -> FloatArray: ...
    @property
    def losses(self) -> FloatArray: ...
    @property
    def suggestions(self) -> Mapping[str, Suggestion]: ...
    @property
    def rule(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def repeats(self) -> FloatArray | None: ...
    @property
    def band(self) -> tuple[FloatArray, FloatArray] | None: ...
    @property
    def race(self) -> object: ...


class _Line(NamedTuple):
    """A range test's losses as a line for the eye."""

    lrs: FloatArray  # [points]
    heights: FloatArray  # [points]
    span: tuple[float, float] | None  # that shows the fall; None if no loss is finite

    @classmethod
    def of(cls, result: DrawnTest) -> _Line:
        losses = result.losses
        return cls(result.lrs, centred_average(losses), height_of_curve(losses))

    def at(self, lr: float) -> float:
        return float(np.interp(lr, self.lrs, self.heights))


@overload
def plot_range_test(
    result: DrawnTest,
    path: File = None,
    others: Sequence[DrawnTest] = (),
    *,
    rules: Rules = None,
    skip_start: int | None = None,
    skip_end: int | None = None,
    ax: None = None,
) -> Figure: ...
@overload
def plot_range_test(
    result: DrawnTest,
    path: File = None,
    others: Sequence[DrawnTest] = (),
    *,
    rules: Rules = None,
    skip_start: int | None = None,
    skip_end: int | None = None,
    ax: Axes,
) -> Axes: ...
@checked
def plot_range_test(
    result: DrawnTest,
    path: File = None,
    others: Sequence[DrawnTest] = (),
    *,
    rules: Rules = None,
    skip_start: int | None = None,
    skip_end: int | None = None,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of a range test: loss and suggestion above, the derivative below.

    The line through the losses is a centred average, which does not lag as the EMA of the stop rule
    does.

    Args:
        result: A return value of :func:`lrfast.lr_find`.
        path: Where to save the figure too; the suffix names the format.
        others: Range tests whose smoothed losses and derivatives are drawn behind.
        rules: Suggestions to mark: None, the default, for that of ``result.rule``, "all", a name,
            or a list of names.
        skip_start: Points to leave out at the start, 0 or more. None, the default: the flat part
            but for a decade.
        skip_end: Points to leave out at the end, 0 or more. None, the default: those whose loss is
            far above the rest.
        ax: Axes of matplotlib to draw the losses into, without the derivative, which are returned;
            None, the default: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
        ValueError: If ``rules`` names a method that the range test does not have, or fewer than two
            points would be left.
    """
    return draw_range_test(result, path, others, rules, (skip_start, skip_end), ax)


def draw_range_test(
    result: DrawnTest,
    path: File,
    others: Sequence[DrawnTest],
    rules: Rules,
    skip: tuple[int | None, int | None],
    ax: Axes | None,
) -> Figure | Axes:
    """Return the figure or axes of :func:`plot_range_test`."""
    marked = _marked(result, rules)
    line = _Line.of(result)
    shown = _shown_points(result, line, *skip, marked)
    losses, *below = panels_of(ax, 2, (8.0, 6.0), height_ratios=(2, 1))
    for index, other in enumerate(others):
        # Neither the line of the losses nor that of the derivative.
        style = line_style(index, len(others), len(other.lrs)) | {"linestyle": LINES[2 + index % 2]}
        style |= {"color": f"C{index + 4}", "linewidth": 1, "marker": MARKERS[index % 8]}
        _draw_curve(
            losses, below, _Line.of(other), slice(None), style | {"label": f"run {index + 2}"}
        )
    lrs = result.lrs[shown]
    if result.repeats is not None and result.band is not None:
        label = f"quartiles of {len(result.repeats)} sweeps"
        low, high = (edge[shown] for edge in result.band)
        band: dict[str, Any] = {"color": "C0", "alpha": 0.2, "lw": 0, "hatch": "////"}
        losses.fill_between(lrs, low, high, **band, label=label)
    losses.plot(lrs, result.losses[shown], color="0.75", linewidth=1, label="loss")
    slope = _draw_curve(losses, below, line, shown, {"color": "C0", "label": "smoothed loss"})
    _mark_suggestions(losses, result, line, marked)
    lr = result.suggestions[result.rule].lr
    for panel in (losses, *below):
        if lr is not None and result.rule in marked:
            panel.axvline(lr, color="C3", linestyle=":", linewidth=1.2)
    limit_height(losses, height_of_curve(result.losses[shown]))
    cost = "" if result.race is None else f"\n{result.race}"
    losses.set(title=f"Range test: {_what_happened(result, line)}{cost}", ylabel="loss")
    for slopes in below:
        limit_height(slopes, limits(slope))
        slopes.axhline(0.0, color="0.6", linewidth=0.8)
        slopes.set_ylabel("d loss / d ln(lr)")
    _lr_axis([losses, *below][-1], [lrs, *(other.lrs for other in others)])
    legend_outside(losses)
    return finish(losses, path, ax)


def _marked(result: DrawnTest, rules: str | Sequence[str] | None) -> list[str]:
    """Return the methods to mark, of which one without a suggestion is none."""
    names = [result.rule] if rules is None else [rules] if isinstance(rules, str) else list(rules)
    if rules == "all":
        names = list(result.suggestions)
    for name in names:
        if name not in result.suggestions:
            known = ", ".join(result.suggestions)
            raise ValueError(f'rules must be "all" or some of {known}, got {name!r}')
    return [name for name in names if result.suggestions[name].lr is not None]


def _shown_points(
    result: DrawnTest,
    line: _Line,
    skip_start: int | None,
    skip_end: int | None,
    marked: Sequence[str],
) -> slice:
    """Return the points to show: without the flat part and the explosion, with all marks."""
    count = len(result.lrs)
    for name, skip in (("skip_start", skip_start), ("skip_end", skip_end)):
        if skip is not None:
            check_count(name, skip, least=0)
    heights, span = line.heights, line.span
    start, stop = 0, count
    if span is not None and count > 20:
        level = float(np.nanmedian(heights[: count // 10]))
        # Further from the start's level than noise is.
        moved = np.flatnonzero(np.abs(heights - level) > 0.1 * (span[1] - span[0]))
        first = result.lrs[moved[0]] if len(moved) else result.lrs[0]
        found = [result.suggestions[name] for name in marked]
        lows = [s.lr if s.base_lr is None else s.base_lr for s in found if s.lr is not None]
        start = int(np.searchsorted(result.lrs, min([first / 10, *(lr / 2 for lr in lows)])))
        seen = np.flatnonzero(heights <= span[1])
        stop = min(int(seen[-1]) + 2, count)
        last = max((s.lr for s in found if s.lr is not None), default=0.0)
        stop = max(stop, int(np.searchsorted(result.lrs, last)) + 1)
    start = start if skip_start is None else int(skip_start)
    stop = stop if skip_end is None else count - int(skip_end)
    if (skip_start is not None or skip_end is not None) and stop - start < 2:
        raise ValueError(
            f"skip_start and skip_end must leave two points or more of {count}, got {start} "
            f"and {count - stop}"
        )
    return slice(start, stop)


def _draw_curve(
    losses: Axes, below: list[Axes], line: _Line, shown: slice, style: dict[str, Any]
) -> FloatArray:
    """Draw the smoothed losses and their slopes; return the slopes."""
    lrs, heights, span = line
    slope = np.full_like(heights, np.nan)
    if len(lrs) > 1 and span is not None:
        slope = np.gradient(np.where(heights > span[1], np.nan, heights), np.log(lrs))
    losses.plot(lrs[shown], heights[shown], **style)
    for slopes in below:
        alone = {"color": "C1", "linestyle": "--"} if "linestyle" not in style else {}
        slopes.plot(lrs[shown], slope[shown], **style | alone | {"label": "_"})
    return slope[shown]


def _what_happened(result: DrawnTest, line: _Line) -> str:
    """Return the end of the sweep in words."""
    if len(result.lrs) == 0:
        return "no points"
    end = f"lr {result.lrs[-1]:.2g}"
    if result.outcome == "diverged":
        return f"diverged at {end}"
    if result.outcome == "non-finite":
        return f"loss not finite at {end}"
    heights = line.heights
    low, high = line.span or (0.0, 0.0)
    if min(heights[-1], high) - heights.min() > 0.1 * (high - low):
        return f"loss lowest at lr {result.lrs[heights.argmin()]:.2g}, not diverged up to {end}"
    return f"loss never rose up to {end}"


@overload
def plot_comparison(
    results: Sequence[DrawnTest], path: File = None, labels: Labels = None, *, ax: None = None
) -> Figure: ...
@overload
def plot_comparison(
    results: Sequence[DrawnTest], path: File = None, labels: Labels = None, *, ax: Axes
) -> Axes: ...
@checked
def plot_comparison(
    results: Sequence[DrawnTest],
    path: File = None,
    labels: Labels = None,
    *,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of the smoothed losses of range tests and the learning rates they suggest.

    Args:
        results: Two range tests or more.
        path: Where to save the figure too; the suffix names the format.
        labels: Name of each; None for "run 1", "run 2" and so on.
        ax: Axes of matplotlib to draw into, which are returned; None: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
        ValueError: If there are fewer than two range tests, or not one label for each.
    """
    count = len(results)
    if count < 2:
        raise ValueError(f"results must hold two range tests or more, got {count}")
    if labels is None:
        labels = [f"run {index + 1}" for index in range(count)]
    if len(labels) != count:
        raise ValueError(f"labels must be one per range test, {count} of them, got {len(labels)}")
    (axes,) = panels_of(ax, 1, (8.0, 4.5))
    for index, (result, label) in enumerate(zip(results, labels, strict=True)):
        lr = result.suggestions[result.rule].lr
        answer = "no suggestion" if lr is None else f"{lr:.1e}"
        style = line_style(index, count, len(result.lrs))
        style["label"] = f"{label} ({result.outcome}, {result.rule}: {answer})"
        line = _Line.of(result)
        axes.plot(result.lrs, line.heights, **style)
        if lr is not None:
            axes.plot(lr, line.at(lr), "*", color=f"C{index}", markersize=14)
    limit_height(axes, limits(np.concatenate([result.losses for result in results])))
    axes.set(title="Range tests", ylabel="smoothed loss")
    _lr_axis(axes, [result.lrs for result in results])
    legend_outside(axes)
    return finish(axes, path, ax)


def _mark_suggestions(axes: Axes, result: DrawnTest, line: _Line, names: Sequence[str]) -> None:
    """Mark suggested learning rates on the line; a pair is two marks that are joined."""
    for name, marker in zip(names, itertools.cycle("svoDPX^<>hdp"), strict=False):
        suggestion = result.suggestions[name]
        style: dict[str, Any] = {"markersize": 7, "markerfacecolor": "w", "markeredgecolor": "k"}
        if name == result.rule:
            style, marker = {"markersize": 14, "color": "C3"}, "*"
            if suggestion.interval is not None:
                axes.axvspan(*suggestion.interval, color="C3", alpha=0.08, linewidth=0)
        lrs = [lr for lr in (suggestion.base_lr, suggestion.lr) if lr is not None]
        heights = [line.at(lr) for lr in lrs]
        style |= {"linestyle": ":" if len(lrs) > 1 else "none", "marker": marker}
        axes.plot(lrs, heights, **{"color": "k"} | style, label=f"{name}: {lr_text(suggestion)}")


def _lr_axis(axes: Axes, drawn: Sequence[FloatArray]) -> None:
    """Set the limits of a logarithmic axis of learning rates, and ticks such as 1e-3."""
    axes.set_xlabel("learning rate")
    lrs = np.concatenate(drawn)
    if len(lrs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(lrs.min() / 1.1, lrs.max() * 1.1)
        lr_ticks(axes.xaxis, lrs.max() / lrs.min())
