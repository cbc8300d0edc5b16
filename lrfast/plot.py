"""Figures of range tests, schedules and histories; nothing is computed here.

matplotlib is an optional dependency, imported when a figure is wanted. Figures are made without
pyplot, so that no window opens and no global state changes. Lines differ in style as well as in
colour: a print in black and white stays readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrfast._utils.atomic_write import replacing
from lrfast.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lrfast.finetune._history import History
    from lrfast.optim._scheduling import Scheduled
    from lrfast.range_test import RangeTest

_LINES = ("-", "--", "-.", ":")
_MARKERS = {
    "auto": "*",
    "verified": "*",
    "minimum": "v",
    "steep": "s",
    "valley": "o",
    "slide": "D",
}
_MOST_LABELS = 14  # lines that a legend names
_DECADES = 30.0  # between largest and smallest rate, from which on a linear axis hides the latter
_MORE_MARKERS = ("P", "X", "^", "<", ">", "h", "d", "p")


def plot_range_test(
    result: RangeTest, path: str | Path | None = None, others: Sequence[RangeTest] = ()
) -> Figure:
    """Draw a range test: losses and suggestions above, the derivative below.

    Args:
        result: What :func:`lrfast.lr_find` returned.
        path: Where to save the figure too; the suffix names the format.
        others: Range tests whose smoothed losses and derivatives are drawn behind.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _new_figure(8.0, 6.0)
    losses, slopes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if result.repeats is not None and result.band is not None:
        label = f"quartiles of {len(result.repeats)} sweeps"
        band = {"color": "C0", "alpha": 0.2, "lw": 0, "hatch": "////"}
        losses.fill_between(result.lrs, *result.band, **band, label=label)
    for index, other in enumerate(others):
        # Neither the line of the losses nor that of the derivative.
        style = _style(index, len(others), len(other.lrs)) | {"linestyle": _LINES[2 + index % 2]}
        style |= {"color": f"C{index + 4}", "linewidth": 1, "marker": _MORE_MARKERS[index % 8]}
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
    _limit(losses, np.concatenate([result.losses, result.smoothed]))
    _limit(slopes, result.derivative)
    losses.set_title(f"Range test ({result.outcome})")
    losses.set_ylabel("loss")
    slopes.set_ylabel("d loss / d ln(rate)")
    _rate_axis(slopes, (result, *others))
    losses.legend(fontsize="small")
    return _finish(figure, path)


def plot_comparison(
    results: Sequence[RangeTest],
    path: str | Path | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw the smoothed losses of several range tests and the rate chosen in each.

    Args:
        results: Two range tests or more.
        path: Where to save the figure too; the suffix names the format.
        labels: What to call each; None for "run 1", "run 2" and so on.

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
    figure = _new_figure(8.0, 4.5)
    axes = figure.subplots()
    for index, (result, label) in enumerate(zip(results, labels, strict=True)):
        color = f"C{index}"
        lr = result.suggestion.lr
        rate = f"{result.rule}: no rate" if lr is None else f"{result.rule}: {lr:.1e}"
        axes.plot(
            result.lrs,
            result.smoothed,
            **_style(index, count, len(result.lrs)),
            label=f"{label} ({result.outcome}, {rate})",
        )
        if lr is not None:
            axes.plot(lr, _height(result, lr), "*", color=color, markersize=14)
    _limit(axes, np.concatenate([result.smoothed for result in results]))
    axes.set_title("Range tests")
    axes.set_ylabel("smoothed loss")
    _rate_axis(axes, results)
    axes.legend(fontsize="small")
    return _finish(figure, path)


def _mark_suggestions(axes: Axes, result: RangeTest) -> None:
    """Mark every suggested rate, and shade the span of a pair."""
    more = iter(_MORE_MARKERS * len(result.suggestions))
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
            marker=_MARKERS.get(name) or next(more),
            markersize=14 if chosen else 7,
            markerfacecolor="C3" if chosen else "white",
            markeredgecolor="C3" if chosen else "black",
            label=f"{name}: {suggestion.lr:.1e}",
        )


def _height(result: RangeTest, lr: float) -> float:
    return float(np.interp(lr, result.lrs, result.smoothed))


def _rate_axis(axes: Axes, results: Sequence[RangeTest]) -> None:
    axes.set_xlabel("learning rate")
    rates = np.concatenate([result.lrs for result in results])
    if len(rates) > 0:
        axes.set_xscale("log")
        axes.set_xlim(rates.min() / 1.5, rates.max() * 1.5)


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
    channels = {
        "momentum": schedule.momentum(steps),
        "weight decay, multiplier": schedule.weight_decay(steps),
    }
    others = {name: values for name, values in channels.items() if values is not None}
    figure, panels = _panels(1 + len(others))
    multipliers = schedule.values(steps)
    for group, rate in enumerate(rates):
        style = _style(group, len(rates), len(steps))
        panels[0].plot(steps, rate * multipliers, **style, label=f"group {group}")
    if len(set(rates)) > 1:
        panels[0].set_yscale("log")
        panels[0].legend(fontsize="small")
    panels[0].set_ylabel("learning rate" if rates != (1.0,) else "multiplier")
    for axes, (name, values) in zip(panels[1:], others.items(), strict=True):
        axes.plot(steps, values, "k--")
        axes.set_ylabel(name)
    panels[0].set_title(schedule.name)
    return _finish(figure, path)


def plot_schedules(
    optimizer: Scheduled, steps: int | None = None, path: str | Path | None = None
) -> Figure:
    """Draw what an optimizer's schedules will do: rate, momentum and weight decay of every group.

    Groups that share a curve share a line. A vertical line marks the step that comes next.

    Args:
        optimizer: Any of lrfast, with a schedule.
        steps: How many to draw, 1 or more; None: up to the end of the longest schedule.
        path: Where to save the figure too; the suffix names the format.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``steps`` is out of range, or None without a schedule.

    Example:
        >>> import torch, lrfast
        >>> from lrfast.plot import plot_schedules
        >>> layer, one_cycle = torch.nn.Linear(2, 1), lrfast.schedules.one_cycle
        >>> optimizer = lrfast.AdamW(layer.parameters(), lr=0.01, schedule=one_cycle(100))
        >>> [axes.get_ylabel() for axes in plot_schedules(optimizer).axes]
        ['learning rate', 'momentum', 'weight decay']
    """
    planned = optimizer.planned(steps)
    names = [
        str(group.get("name", index)) + (" (frozen)" if group.get("frozen") else "")
        for index, group in enumerate(optimizer.param_groups)
    ]
    channels = {
        "learning rate": planned.rates,
        "momentum": planned.momenta,
        "weight decay": planned.weight_decays,
    }
    shown = {label: values for label, values in channels.items() if not np.isnan(values).all()}
    figure, panels = _panels(len(shown), width=10.0)
    for axes, (label, values) in zip(panels, shown.items(), strict=True):
        _draw_groups(axes, planned.steps, values, names)
        axes.set_ylabel(label)
        if optimizer.schedule_step:
            axes.axvline(optimizer.schedule_step, color="0.6", linewidth=0.8)
    first = planned.rates[planned.rates > 0]
    if len(first) and first.max() > _DECADES * first.min():
        panels[0].set_yscale("log")
    schedules = dict.fromkeys("none" if s is None else s.name for s in optimizer.schedules)
    panels[0].set_title(f"Planned: {'; '.join(schedules)}")
    return _finish(figure, path)


def _draw_groups(
    axes: Axes, steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64], names: list[str]
) -> None:
    """Draw one line for each distinct column."""
    groups: dict[bytes, list[int]] = {}
    for index, column in enumerate(values.T):
        groups.setdefault(column.tobytes(), []).append(index)
    lines = list(groups.values())
    stride = -(-len(lines) // _MOST_LABELS)
    for line, members in enumerate(lines):
        is_named = line % stride == 0 or line == len(lines) - 1
        axes.plot(
            steps,
            values[:, members[0]],
            **_style(line, len(lines), len(steps)),
            label=_group_label(members, names) if is_named else None,
        )
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _style(line: int, count: int, points: int) -> dict[str, Any]:
    """What tells a line from others without its colour: four styles, by eight markers for more."""
    every = max(points // 12, 1)
    return {
        "linestyle": _LINES[line % 4],
        "color": f"C{line}",
        "marker": "" if count <= 4 else _MORE_MARKERS[line // 4 % len(_MORE_MARKERS)],
        "markersize": 4,
        "markevery": (line * every // count, every),
    }


def _group_label(members: list[int], names: list[str]) -> str:
    if len(members) == len(names) > 1:
        return "all groups"
    shown = ", ".join(names[index] for index in members[:4])
    more = f" and {len(members) - 4} more" if len(members) > 4 else ""
    return f"group{'s' if len(members) > 1 else ''} {shown}{more}"


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
            style = _style(group, stage.rates.shape[1], len(steps))
            rates.plot(steps, stage.rates[:, group], **style, label=label)
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
            "plots need matplotlib: install it with `pip install 'lrfast[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _panels(count: int, width: float = 8.0) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other, over the same steps."""
    figure = _new_figure(width, 1.0 + 2.2 * count)
    panels: list[Axes] = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    panels[-1].set_xlabel("step")
    return figure, panels


def limits(values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Return axis limits that keep the divergence at the end from flattening all before it.

    Args:
        values: What is drawn, [points].

    Returns:
        Lower and upper limit, or None without a finite value.

    Example:
        >>> limits(np.array([1.0, 2.0, np.nan]))
        (0.905, 2.095)
    """
    # A figure cannot hold the differences of numbers that are larger still.
    finite = values[np.abs(values) < 1e300]
    if len(finite) == 0:
        return None
    low, high = float(finite.min()), float(np.quantile(finite, 0.95))
    margin = 0.1 * (high - low) or 0.1 * abs(low) or 0.1
    return low - margin, min(high + 3 * margin, float(finite.max()) + margin)


def _limit(axes: Axes, values: npt.NDArray[np.float64]) -> None:
    span = limits(values)
    if span is not None:
        axes.set_ylim(*span)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        kind = Path(path).suffix[1:] or figure.canvas.get_default_filetype()
        with replacing(Path(path).with_suffix(f".{kind}"), "wb") as file:
            figure.savefig(file, dpi=120, format=kind)
    return figure
