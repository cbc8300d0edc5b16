"""Figures of range tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import numpy as np

from lrfast._utils.arguments import checked
from lrfast._utils.figures import LINES, MARKERS, finish, limit_height, line_style, panels_of
from lrfast.range_test._sweep import FloatArray
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

File: TypeAlias = str | Path | None
Labels: TypeAlias = Sequence[str] | None

_MARKS = {"auto": "*", "verified": "*", "minimum": "v", "steep": "s", "valley": "o", "slide": "D"}


class DrawnTest(Protocol):
    """The part of a :class:`lrfast.RangeTest` that is drawn."""

    @property
    def lrs(self) -> FloatArray: ...
    @property
    def losses(self) -> FloatArray: ...
    @property
    def smoothed(self) -> FloatArray: ...
    @property
    def derivative(self) -> FloatArray: ...
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


@overload
def plot_range_test(
    result: DrawnTest, path: File = None, others: Sequence[DrawnTest] = (), *, ax: None = None
) -> Figure: ...
@overload
def plot_range_test(
    result: DrawnTest, path: File = None, others: Sequence[DrawnTest] = (), *, ax: Axes
) -> Axes: ...
@checked
def plot_range_test(
    result: DrawnTest,
    path: File = None,
    others: Sequence[DrawnTest] = (),
    *,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of a range test: losses and suggestions above, the derivative below.

    Args:
        result: A return value of :func:`lrfast.lr_find`.
        path: Where to save the figure too; the suffix names the format.
        others: Range tests whose smoothed losses and derivatives are drawn behind.
        ax: Axes of matplotlib to draw the losses into, which are returned; None: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
    """
    losses, *below = panels_of(ax, 2, (8.0, 6.0), height_ratios=(2, 1))
    if result.repeats is not None and result.band is not None:
        label = f"quartiles of {len(result.repeats)} sweeps"
        band: dict[str, Any] = {"color": "C0", "alpha": 0.2, "lw": 0, "hatch": "////"}
        losses.fill_between(result.lrs, *result.band, **band, label=label)
    for index, other in enumerate(others):
        # Neither the line of the losses nor that of the derivative.
        style = line_style(index, len(others), len(other.lrs)) | {"linestyle": LINES[2 + index % 2]}
        style |= {"color": f"C{index + 4}", "linewidth": 1, "marker": MARKERS[index % 8]}
        losses.plot(other.lrs, other.smoothed, **style, label=f"run {index + 2}")
        for slopes in below:
            slopes.plot(other.lrs, other.derivative, **style)
    losses.plot(result.lrs, result.losses, color="0.75", linewidth=1, label="loss")
    losses.plot(result.lrs, result.smoothed, color="C0", label="smoothed loss")
    for slopes in below:
        slopes.plot(result.lrs, result.derivative, color="C1", linestyle="--")
        slopes.axhline(0.0, color="0.6", linewidth=0.8)
        limit_height(slopes, result.derivative)
        slopes.set_ylabel("d loss / d ln(rate)")
    _mark_suggestions(losses, result)
    lr = result.suggestions[result.rule].lr
    if lr is not None:
        for panel in (losses, *below):
            panel.axvline(lr, color="C3", linestyle=":", linewidth=1.2)
    limit_height(losses, np.concatenate([result.losses, result.smoothed]))
    losses.set(title=f"Range test ({result.outcome})", ylabel="loss")
    _rate_axis(below[-1] if below else losses, (result, *others))
    losses.legend(fontsize="small")
    return finish(losses, path, ax)


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
        axes.plot(result.lrs, result.smoothed, **style)
        if lr is not None:
            axes.plot(lr, _height(result, lr), "*", color=f"C{index}", markersize=14)
    limit_height(axes, np.concatenate([result.smoothed for result in results]))
    axes.set(title="Range tests", ylabel="smoothed loss")
    _rate_axis(axes, results)
    axes.legend(fontsize="small")
    return finish(axes, path, ax)


def _mark_suggestions(axes: Axes, result: DrawnTest) -> None:
    """Mark every suggested learning rate, and shade the span of a pair."""
    more = iter(MARKERS * len(result.suggestions))
    for name, suggestion in result.suggestions.items():
        base_lr, lr = suggestion.base_lr, suggestion.lr
        if lr is None:
            continue
        if base_lr is not None:
            span = f"{name}: {base_lr:.1e} to {lr:.1e}"
            axes.axvspan(base_lr, lr, color="C2", alpha=0.12, label=span)
            continue
        style: dict[str, Any] = {"markersize": 7, "markerfacecolor": "w", "markeredgecolor": "k"}
        if name == result.rule:
            style = {"markersize": 14, "color": "C3"}
        marker = _MARKS.get(name) or next(more)
        axes.plot(lr, _height(result, lr), marker, **style, label=f"{name}: {lr:.1e}")


def _height(result: DrawnTest, lr: float) -> float:
    return float(np.interp(lr, result.lrs, result.smoothed))


def _rate_axis(axes: Axes, results: Sequence[DrawnTest]) -> None:
    axes.set_xlabel("learning rate")
    rates = np.concatenate([result.lrs for result in results])
    if len(rates) > 0:
        axes.set_xscale("log")
        axes.set_xlim(rates.min() / 1.5, rates.max() * 1.5)
