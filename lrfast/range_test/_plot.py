"""Figures of range tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lrfast._utils.figures import (
    LINES,
    MARKERS,
    FloatArray,
    finish,
    limit_height,
    line_style,
    new_figure,
)
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RULE_MARKERS = {
    "auto": "*",
    "verified": "*",
    "minimum": "v",
    "steep": "s",
    "valley": "o",
    "slide": "D",
}


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
    def suggestion(self) -> Suggestion: ...
    @property
    def rule(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def repeats(self) -> FloatArray | None: ...
    @property
    def band(self) -> tuple[FloatArray, FloatArray] | None: ...


def plot_range_test(
    result: DrawnTest, path: str | Path | None = None, others: Sequence[DrawnTest] = ()
) -> Figure:
    """Draw a range test: losses and suggestions above, the derivative below.

    Args:
        result: A return value of :func:`lrfast.lr_find`.
        path: Where to save the figure too; the suffix names the format.
        others: Range tests whose smoothed losses and derivatives are drawn behind.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(8.0, 6.0)
    losses, slopes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if result.repeats is not None and result.band is not None:
        label = f"quartiles of {len(result.repeats)} sweeps"
        band = {"color": "C0", "alpha": 0.2, "lw": 0, "hatch": "////"}
        losses.fill_between(result.lrs, *result.band, **band, label=label)
    for index, other in enumerate(others):
        # Neither the line of the losses nor that of the derivative.
        style = line_style(index, len(others), len(other.lrs)) | {"linestyle": LINES[2 + index % 2]}
        style |= {"color": f"C{index + 4}", "linewidth": 1, "marker": MARKERS[index % 8]}
        losses.plot(other.lrs, other.smoothed, **style, label=f"run {index + 2}")
        slopes.plot(other.lrs, other.derivative, **style)
    losses.plot(result.lrs, result.losses, color="0.75", linewidth=1, label="loss")
    losses.plot(result.lrs, result.smoothed, color="C0", label="smoothed loss")
    slopes.plot(result.lrs, result.derivative, color="C1", linestyle="--")
    slopes.axhline(0.0, color="0.6", linewidth=0.8)
    _mark_suggestions(losses, result)
    if result.suggestion.lr is not None:
        for axes in (losses, slopes):
            axes.axvline(result.suggestion.lr, color="C3", linestyle=":", linewidth=1.2)
    limit_height(losses, np.concatenate([result.losses, result.smoothed]))
    limit_height(slopes, result.derivative)
    losses.set_title(f"Range test ({result.outcome})")
    losses.set_ylabel("loss")
    slopes.set_ylabel("d loss / d ln(rate)")
    _rate_axis(slopes, (result, *others))
    losses.legend(fontsize="small")
    return finish(figure, path)


def plot_comparison(
    results: Sequence[DrawnTest],
    path: str | Path | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw the smoothed losses of several range tests and the learning rate chosen in each.

    Args:
        results: Two range tests or more.
        path: Where to save the figure too; the suffix names the format.
        labels: Name of each; None for "run 1", "run 2" and so on.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are fewer than two range tests, or not one label for each.
    """
    count = len(results)
    if count < 2:
        raise ValueError(f"results must hold two range tests or more, got {count}")
    if labels is None:
        labels = [f"run {index + 1}" for index in range(count)]
    if len(labels) != count:
        raise ValueError(f"labels must be one per range test, {count} of them, got {len(labels)}")
    figure = new_figure(8.0, 4.5)
    axes = figure.subplots()
    for index, (result, label) in enumerate(zip(results, labels, strict=True)):
        color = f"C{index}"
        lr = result.suggestion.lr
        rate = f"{result.rule}: no suggestion" if lr is None else f"{result.rule}: {lr:.1e}"
        axes.plot(
            result.lrs,
            result.smoothed,
            **line_style(index, count, len(result.lrs)),
            label=f"{label} ({result.outcome}, {rate})",
        )
        if lr is not None:
            axes.plot(lr, _height(result, lr), "*", color=color, markersize=14)
    limit_height(axes, np.concatenate([result.smoothed for result in results]))
    axes.set_title("Range tests")
    axes.set_ylabel("smoothed loss")
    _rate_axis(axes, results)
    axes.legend(fontsize="small")
    return finish(figure, path)


def _mark_suggestions(axes: Axes, result: DrawnTest) -> None:
    """Mark every suggested learning rate, and shade the span of a pair."""
    more = iter(MARKERS * len(result.suggestions))
    for name, suggestion in result.suggestions.items():
        if suggestion.lr is None:
            continue
        if suggestion.base_lr is not None:
            span = f"{name}: {suggestion.base_lr:.1e} to {suggestion.lr:.1e}"
            axes.axvspan(suggestion.base_lr, suggestion.lr, color="C2", alpha=0.12, label=span)
            continue
        chosen = name == result.rule
        axes.plot(
            suggestion.lr,
            _height(result, suggestion.lr),
            linestyle="none",
            marker=_RULE_MARKERS.get(name) or next(more),
            markersize=14 if chosen else 7,
            markerfacecolor="C3" if chosen else "white",
            markeredgecolor="C3" if chosen else "black",
            label=f"{name}: {suggestion.lr:.1e}",
        )


def _height(result: DrawnTest, lr: float) -> float:
    return float(np.interp(lr, result.lrs, result.smoothed))


def _rate_axis(axes: Axes, results: Sequence[DrawnTest]) -> None:
    axes.set_xlabel("learning rate")
    rates = np.concatenate([result.lrs for result in results])
    if len(rates) > 0:
        axes.set_xscale("log")
        axes.set_xlim(rates.min() / 1.5, rates.max() * 1.5)
