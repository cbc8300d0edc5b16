"""Figure of the values that an optimizer's schedules will give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from lrfast._utils.arguments import checked
from lrfast._utils.figures import FloatArray, finish, line_style, step_panels
from lrfast.optim._optimizer import FusedOptimizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

File: TypeAlias = str | Path | None

_MOST_LABELS = 14  # lines that a legend names
_DECADES = 30.0  # between largest and smallest rate, from which on a linear axis hides the latter


@overload
def plot_schedules(
    optimizer: FusedOptimizer, steps: int | None = None, path: File = None, *, ax: None = None
) -> Figure: ...
@overload
def plot_schedules(
    optimizer: FusedOptimizer, steps: int | None = None, path: File = None, *, ax: Axes
) -> Axes: ...
@checked
def plot_schedules(
    optimizer: FusedOptimizer,
    steps: int | None = None,
    path: File = None,
    *,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of the learning rate, momentum and decay that every group will have.

    Groups that share a curve share a line. A vertical line marks the step that comes next.

    Args:
        optimizer: An lrfast optimizer with a schedule.
        steps: Steps to draw, 1 or more; None, the default: to the end of the longest schedule.
        path: File to save the figure to, in the format of its suffix; default None.
        ax: Axes of matplotlib to draw the learning rates into, which are returned; None, the
            default: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
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
    labels = ("learning rate", "momentum", "weight decay")
    channels = zip(labels, (planned.rates, planned.momenta, planned.weight_decays), strict=True)
    shown = {label: values for label, values in channels if not np.isnan(values).all()}
    panels = step_panels(ax, len(shown), width=10.0)
    for axes, (label, values) in zip(panels, shown.items(), strict=ax is None):
        _draw_groups(axes, planned.steps, values, names)
        axes.set_ylabel(label)
        if optimizer.schedule_step:
            axes.axvline(optimizer.schedule_step, color="0.6", linewidth=0.8)
    first = planned.rates[planned.rates > 0]
    if len(first) and first.max() > _DECADES * first.min():
        panels[0].set_yscale("log")
    schedules = dict.fromkeys("none" if s is None else s.name for s in optimizer.schedules)
    panels[0].set_title(f"Planned: {'; '.join(schedules)}")
    return finish(panels[0], path, ax)


def _draw_groups(
    axes: Axes, steps: npt.NDArray[np.int64], values: FloatArray, names: list[str]
) -> None:
    """Draw one line for each distinct column."""
    groups: dict[bytes, list[int]] = {}
    for index, column in enumerate(values.T):
        groups.setdefault(column.tobytes(), []).append(index)
    lines = list(groups.values())
    stride = -(-len(lines) // _MOST_LABELS)
    for line, members in enumerate(lines):
        is_named = line % stride == 0 or line == len(lines) - 1
        label = _group_label(members, names) if is_named else None
        style = line_style(line, len(lines), len(steps))
        axes.plot(steps, values[:, members[0]], **style, label=label)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _group_label(members: list[int], names: list[str]) -> str:
    """Return the name of a line that some groups share."""
    if len(members) == len(names) > 1:
        return "all groups"
    shown = ", ".join(names[index] for index in members[:4])
    more = f" and {len(members) - 4} more" if len(members) > 4 else ""
    return f"group{'s' if len(members) > 1 else ''} {shown}{more}"
