"""Checks of matplotlib figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrfast import History, RangeTest, Stage, schedules
from lrfast.range_test._sweep import Sweep
from lrfast.suggest import Suggestion

PNG = b"\x89PNG\r\n\x1a\n"


FOUND = {"auto": 3e-3, "minimum": 1e-2, "steep": 2e-4, "valley": None, "slide": 5e-3, "other": 1e-3}


def make_result(points: int = 60, found: Any = FOUND, **fields: Any) -> RangeTest:
    lrs = np.geomspace(1e-6, 1.0, points)
    smoothed = 2 / (1 + lrs / 1e-2) + 40 * lrs**2
    values: dict[str, Any] = {
        "lrs": lrs,
        "losses": smoothed + 0.1 * np.sin(np.arange(points)),
        "smoothed": smoothed,
        "derivative": np.gradient(smoothed, np.log(lrs)) if points > 1 else smoothed * np.nan,
        "sweep": Sweep("exp", max(points, 2), ((1e-6, 1.0),), 0),
        "suggestions": suggested(found),
        "outcome": "diverged",
        "seconds": 1.0,
    }
    return RangeTest(**(values | fields))


def suggested(found: Any, *more: Suggestion) -> MappingProxyType[str, Suggestion]:
    entries = [Suggestion(lr, name, "a reason", 0.9) for name, lr in found.items()]
    return MappingProxyType({entry.rule: entry for entry in (*entries, *more)})


def make_stage(name: str, steps: int, validation: bool = True) -> Stage:
    rates = np.outer(np.linspace(0.1, 1.0, steps), [1e-4, 1e-3])
    row = {"valid_loss": 0.5, "accuracy": 0.9} if validation else {}
    epochs = ({"step": float(steps // 2), **row}, {"step": float(steps), **row})
    losses = np.linspace(2, 1, steps)
    return Stage(name, losses, rates, np.full(steps, 0.9), epochs, "completed", 1.0)


def panels(figure: Figure, count: int) -> list[Axes]:
    assert isinstance(figure, Figure) and len(figure.axes) == count
    return figure.axes


def curve(axes: Axes, label: str) -> Any:
    """The x and y data of the only line whose label starts so."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return line.get_xdata(), line.get_ydata()


def verticals(axes: Axes) -> list[float]:
    """Where vertical lines stand."""
    lines = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
    return [float(x[0]) for x in lines if len(x) == 2 and x[0] == x[1]]


def assert_is_png(path: Path) -> None:
    content = path.read_bytes()
    assert content.startswith(PNG) and len(content) > 5000


PLOTS: dict[str, Callable[[], Any]] = {
    "range test": lambda: make_result().plot(),
    "comparison": lambda: make_result().compare(make_result()),
    "schedule": lambda: schedules.cosine(9).plot(),
    "history": lambda: History([make_stage("head", 10)]).plot(),
}
