"""Figures of matplotlib, which is optional and imported when the first figure is made.

Figures are made without pyplot, so no window opens and no global state changes. Lines differ in
style as well as in colour, so a print in black and white stays readable.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrfast._utils.arguments import described
from lrfast._utils.atomic_write import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]
LINES = ("-", "--", "-.", ":")
MARKERS = ("P", "X", "^", "<", ">", "h", "d", "p")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, or say how to install matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: install it with `pip install 'lrfast[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def panels_of(ax: Axes | None, count: int, size: tuple[float, float], **grid: Any) -> list[Axes]:
    """Return panels one above the other, of a new figure, or the given axes as the only one."""
    if ax is None:
        figure = new_figure(*size)
        return list(figure.subplots(count, 1, sharex=True, squeeze=False, **grid)[:, 0])
    if not hasattr(ax, "get_figure") or not hasattr(ax, "set_xlabel"):
        raise TypeError(f"ax must be axes of matplotlib, got {described(ax)}; pass one of several")
    return [ax]


def step_panels(ax: Axes | None, count: int, width: float = 8.0) -> list[Axes]:
    """Return panels over the same steps, as :func:`panels_of` does."""
    panels = panels_of(ax, count, (width, 1.0 + 2.2 * count))
    panels[-1].set_xlabel("step")
    return panels


def line_style(line: int, count: int, points: int) -> dict[str, Any]:
    """Return the style of one of ``count`` lines: four dashes, times eight markers for more."""
    every = max(points // 12, 1)
    return {
        "linestyle": LINES[line % 4],
        "color": f"C{line}",
        "marker": "" if count <= 4 else MARKERS[line // 4 % len(MARKERS)],
        "markersize": 4,
        "markevery": (line * every // count, every),
    }


def limits(values: FloatArray) -> tuple[float, float] | None:
    """Return lower and upper axis limits that a divergence hardly widens; None if none is finite.

    Args:
        values: Values to draw, [points].

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


def limit_height(axes: Axes, values: FloatArray) -> None:
    """Set the vertical limits to those of the values, if one of them is finite."""
    span = limits(values)
    if span is not None:
        axes.set_ylim(*span)


def finish(panel: Axes, path: str | Path | None, ax: Axes | None) -> Figure | Axes:
    """Return a panel's figure, or the axes that were given; saved if there is a path.

    The path's suffix names the format.
    """
    figure = panel.figure.canvas.figure  # also of axes in a part of a figure
    if path is not None:
        kind = Path(path).suffix[1:] or figure.canvas.get_default_filetype()
        with replacing(Path(path).with_suffix(f".{kind}"), "wb") as file:
            figure.savefig(file, dpi=120, format=kind)
    return figure if ax is None else ax


def html_image(figure: Figure, title: str) -> str:
    """Return an image element with a PNG: notebooks remove inline SVG from untrusted output."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=100)
    data = base64.b64encode(image.getvalue()).decode("ascii")
    return f'<img alt="{title}" src="data:image/png;base64,{data}">'
