"""Charts of the benchmarks: ratios of times, and the cost of a step against its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from benchmarks.report import headlines
from benchmarks.report.results import Result, Row, rows_of
from benchmarks.report.tables import medians_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIOS = "benchmarks_ratios.svg"
AXES = ("tensors", "groups", "parameters")
# Colours that the colour-blind tell apart, too; markers and lines for those who print in grey.
LOOKS = {
    "lrfast": ("o-", "#0072b2"),
    "torch-fused": ("s--", "#d55e00"),
    "torch-foreach": ("^:", "#999999"),
}


def name_of(result: Result) -> str:
    """Returns the name of the file: one per device."""
    return f"benchmarks_scaling_{result['device'].replace(' ', '-').lower()}.svg"


def bars(values: Mapping[str, float], labels: Sequence[str], start: float, limit: float) -> Figure:
    """Returns horizontal bars from `start` on a logarithmic axis, the first on top.

    Bars below `start` are hatched, in another colour; the axis ends at `limit`, and a longer bar
    runs off it with its label at the end.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 0.6 + 0.4 * len(values)), layout="constrained")
    axes = figure.subplots()
    for row, (value, label) in enumerate(zip(values.values(), labels, strict=True)):
        is_less = value < start
        colour, hatch = (LOOKS["torch-fused"][1], "//") if is_less else (LOOKS["lrfast"][1], "")
        axes.barh(row, value - start, left=start, height=0.6, color=colour, hatch=hatch)
        place = min(max(value, start), limit)
        axes.annotate(
            label, (place, row), (4, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set(xscale="log", yticks=range(len(values)), yticklabels=[*values])
    axes.tick_params(axis="y", length=0, labelsize="small")
    axes.invert_yaxis()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.axvline(start, color="black", linewidth=0.8)
    return figure


def ratios(results: Mapping[str, Result]) -> Figure:
    """Returns the chart that the page begins with."""
    _, result = headlines.newest(results)
    found = {title: pair[0] / pair[1] for title, pair in headlines.times(result).items()}
    labels = [headlines.cells(*pair)[-1] for pair in headlines.times(result).values()]
    highest = max(found.values())
    figure = bars({fill(title, 28): ratio for title, ratio in found.items()}, labels, 1, highest)
    (axes,) = figure.axes
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick <= max(found.values())]
    axes.set(xlim=(0.8 * min(1, *found.values()), 1.4 * highest), xticks=ticks)
    axes.set_xticklabels([f"{tick:g}" for tick in ticks], fontsize="small")
    axes.set_xlabel("times as fast as torch's fastest (log scale)", fontsize="small")
    return figure


def draw_all(results: dict[str, Result], folder: Path) -> None:
    """Draws the newest result of each device that has scaling rows."""
    drawn: set[str] = set()
    for result in results.values():
        name = name_of(result)
        if name not in drawn and draw(result, folder / name):
            drawn.add(name)


def draw(result: Result, path: Path) -> bool:
    """Draws a result's scaling rows, if it has any; the same file from the same rows."""
    rows = [row for row in rows_of(result, "scaling") if row["axis"] in AXES]
    if not rows:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Texts stay texts, and names of elements do not depend on chance.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lrfast"}):
        figure, axes = pyplot.subplots(1, len(AXES), figsize=(11, 3.6), layout="constrained")
        lines = {}
        for axis, title in zip(axes, AXES, strict=True):
            points = [row for row in rows if row["axis"] == title]
            for name, (look, colour) in LOOKS.items():
                line = sorted((row["count"], _microseconds(row, name)) for row in points)
                known = [(count, time) for count, time in line if time]
                if known:
                    (lines[name],) = axis.loglog(*zip(*known, strict=True), look, color=colour)
            axis.set_xlabel(title)
            axis.grid(which="major", alpha=0.3)
        axes[0].set_ylabel("µs per AdamW step")
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return True


def _microseconds(row: Row, name: str) -> float:
    """The median, or 0 where that one did not take part."""
    return medians_of(row, "runs_us" if "runs_us" in row else "turns_us").get(name, 0.0)
