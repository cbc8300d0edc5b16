"""Figures of matplotlib, which is optional and imported when the first figure is made.

Figures are made without pyplot, so no window opens and no global state changes. Lines differ in
style as well as in colour, so a print in black and white stays readable.
"""

from __future__ import annotations

import base64
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrfast._utils.arguments import described
from lrfast._utils.atomic_write import replacing
from lrfast._utils.optional import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]
LINES = ("-", "--", "-.", ":")
MARKERS = ("P", "X", "^", "<", ">", "h", "d", "p")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, or say how to install matplotlib."""
    with importing("plots need matplotlib", "matplotlib", extra="plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook draws figures of pyplot only, unless they say how.
    vars(figure).update(_repr_png_=partial(_png, figure))
    return figure


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


def height_of_curve(losses: FloatArray) -> tuple[float, float] | None:
    """Return :func:`limits` of a range test's losses, at most three falls high.

    However many of them have exploded, the fall stays visible.
    """
    span = limits(losses)
    if span is None:
        return None
    begun = max(len(losses) // 10, 1)
    level = float(np.nanmedian(losses[:begun]))
    later = losses[begun - 1 :]
    fall = level - float(later[np.isfinite(later)].min(initial=level))
    if not fall > 0.2 * abs(level):
        return span
    low, high = level - fall, min(span[1], level + 2 * fall)
    return low - 0.1 * (high - low), high


def centred_average(losses: FloatArray) -> FloatArray:
    """Return losses smoothed without lag, for the eye: each the mean of its neighbourhood.

    A Hann window of a tenth of the points. Losses above the visible height count as if they were
    there, so that a divergence doesn't reach back.

    Args:
        losses: Losses in equal distances, [points].

    Example:
        >>> centred_average(np.array([1.0, 3.0, 2.0, np.inf]))
        array([ 1.,  3.,  2., inf])
    """
    reach = len(losses) // 20
    span = height_of_curve(losses)
    if reach == 0 or span is None:
        return losses
    weights = np.hanning(2 * reach + 3)[1:-1]
    known = ~np.isnan(losses)
    sums = np.convolve(np.where(known, np.clip(losses, *span), 0.0), weights, "same")
    counts = np.convolve(known.astype(np.float64), weights, "same")
    mean = np.divide(sums, counts, out=np.full_like(losses, np.nan), where=counts > 0)
    return np.where(losses > span[1], losses, mean)


def limit_height(axes: Axes, span: tuple[float, float] | None) -> None:
    """Set the vertical limits, if there are any."""
    if span is not None:
        axes.set_ylim(*span)


def lr_ticks(axis: Axis, span: float) -> None:
    """Label a logarithmic axis of learning rates at decades, or at 1, 2 and 5 of few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1.0,) if span > 300 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(NullFormatter())


def _tick(lr: float, place: int | None) -> str:
    """Return a tick's label; a function of the module, so that figures can be pickled."""
    return short_lr(lr)


def short_lr(lr: float) -> str:
    """Return a learning rate in a short form, such as 1e-3, 0.1 or 10."""
    if 0.01 <= lr < 1000:
        return f"{lr:g}"
    return np.format_float_scientific(lr, precision=1, trim="-", exp_digits=1)


def legend_outside(axes: Axes) -> None:
    """Give a figure a legend of these axes that hides no data."""
    figure = axes.figure.canvas.figure  # also of axes in a part of a figure
    handles, labels = axes.get_legend_handles_labels()
    if figure.get_layout_engine() is None or len(figure.axes) > 2:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        columns = 3 if max(map(len, labels), default=0) < 40 else 1
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")


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
    data = base64.b64encode(_png(figure)).decode("ascii")
    return f'<img alt="{title}" src="data:image/png;base64,{data}">'


def _png(figure: Figure) -> bytes:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=90)
    return image.getvalue()
