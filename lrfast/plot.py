"""Figures of range tests, schedules and histories; nothing is computed here.

matplotlib is an optional dependency, imported when a figure is wanted. Figures are made without
pyplot, so that no window opens and no global state changes. Lines differ in style as well as in
colour: a print in black and white stays readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lrfast.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lrfast.history import History
    from lrfast.range_test import RangeTest

_LINES = ("-", "--", "-.", ":")
_MARKERS = {"auto": "*", "minimum": "v", "steep": "s", "valley": "o", "slide": "D"}


def plot_range_test(result: RangeTest, path: str | Path | None = None) -> Figure:
    """Draw a range test: losses and suggestions above, the derivative below.

    Args:
        result: What :func:`lrfast.lr_find` returned.
        path: Where to save the figure too; the suffix names the format.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _new_figure(8.0, 6.0)
    losses, slopes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.plot(result.lrs, result.losses, color="0.75", linewidth=1, label="loss")
    losses.plot(result.lrs, result.smoothed, color="C0", label="smoothed loss")
    slopes.plot(result.lrs, result.derivative, color="C1", linestyle="--")
    slopes.axhline(0.0, color="0.6", linewidth=0.8)
    for name, suggestion in result.suggestions.items():
        if suggestion.lr is None:
            continue
        height = float(np.interp(suggestion.lr, result.lrs, result.smoothed))
        chosen = name == "auto"
        losses.plot(
            suggestion.lr,
            height,
            linestyle="none",
            marker=_MARKERS.get(name, "P"),
            markersize=14 if chosen else 7,
            markerfacecolor="C3" if chosen else "white",
            markeredgecolor="C3" if chosen else "black",
            label=f"{name}: {suggestion.lr:.1e}",
        )
        if chosen:
            for axes in (losses, slopes):
                axes.axvline(suggestion.lr, color="C3", linestyle=":", linewidth=1.2)
    _limit(losses, np.concatenate([result.losses, result.smoothed]))
    _limit(slopes, result.derivative)
    losses.set_title(f"Range test ({result.outcome})")
    losses.set_ylabel("loss")
    slopes.set_ylabel("d loss / d ln(rate)")
    slopes.set_xlabel("learning rate")
    slopes.set_xscale("log")
    slopes.set_xlim(result.lrs[0] / 1.5, result.lrs[-1] * 1.5)
    losses.legend(fontsize="small")
    return _finish(figure, path)


def plot_schedule(
    schedule: Schedule, path: str | Path | None = None, rates: Sequence[float] = (1.0,)
) -> Figure:
    """Draw a schedule over its steps, and the momentum where it sets one.

    Args:
        schedule: The schedule.
        path: Where to save the figure too; the suffix names the format.
        rates: Own rates of the param groups that it multiplies, body first.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    steps = np.arange(schedule.total_steps)
    momentum = schedule.momentum(steps)
    figure = _new_figure(8.0, 3.5 if momentum is None else 5.0)
    panels = figure.subplots(1 if momentum is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    multipliers = schedule.values(steps)
    for group, rate in enumerate(rates):
        panels[0].plot(steps, rate * multipliers, _LINES[group % 4], label=f"group {group}")
    if len(set(rates)) > 1:
        panels[0].set_yscale("log")
        panels[0].legend(fontsize="small")
    panels[0].set_ylabel("learning rate" if rates != (1.0,) else "multiplier")
    if momentum is not None:
        panels[1].plot(steps, momentum, "k--")
        panels[1].set_ylabel("momentum")
    panels[0].set_title(schedule.name)
    panels[-1].set_xlabel("step")
    return _finish(figure, path)


def plot_history(history: History, path: str | Path | None = None) -> Figure:
    """Draw a fine-tuning run: losses and validation above, the groups' rates below.

    Args:
        history: ``tuner.history``.
        path: Where to save the figure too; the suffix names the format.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _new_figure(8.0, 6.0)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    losses.set_ylabel("loss")
    losses.set_title("Fine-tuning")
    if not history.stages:
        return _finish(figure, path)
    losses.plot(history.losses, color="0.6", linewidth=1, label="training loss")
    rows = history.epochs
    measured = [row for row in rows if "valid_loss" in row]
    if measured:
        losses.plot(
            [row["step"] for row in measured],
            [row["valid_loss"] for row in measured],
            "C3o-",
            markersize=3,
            label="validation loss",
        )
    start = 0
    for stage in history.stages:
        steps = start + np.arange(len(stage.losses))
        for group in range(stage.rates.shape[1]):
            label = f"group {group}" if start == 0 else None
            style = _LINES[group % 4]
            rates.plot(steps, stage.rates[:, group], style, color=f"C{group}", label=label)
        losses.axvline(start, color="0.8", linewidth=0.8)
        start += len(stage.losses)
    rates.set_yscale("log")
    losses.legend(fontsize="small")
    rates.legend(fontsize="small")
    return _finish(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: install it with `pip install lrfast[plot]`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _limit(axes: Axes, values: npt.NDArray[np.float64]) -> None:
    """Keep the divergence at the end from flattening everything before it."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return
    low, high = float(finite.min()), float(np.quantile(finite, 0.95))
    margin = 0.1 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + 3 * margin)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
