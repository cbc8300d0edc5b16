"""The scaling plot: cost of a step against what it grows with, both on logarithmic axes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.results import Result, Row, rows_of
from benchmarks.report.tables import medians_of

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
