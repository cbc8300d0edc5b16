"""Draws a result file: every rate of the grid, where the rules point, and their mean regret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.readme import LIBRARIES, NEW
from benchmarks.research.suggestions.report import FIRST, chosen_on, mean_regret

COLUMNS = 4
LONGEST = 1.5  # bars of more regret end there
MARKERS = "*vsoDP^X<>hdp8"


def plot(result: dict[str, Any], path: Path) -> Figure:
    """Draws one panel per task and saves the figure; the suffix names the format.

    A panel shows the validation loss after training over the peak rate, with the seeds' standard
    deviation, and the rate that each rule suggests most typically, the median of its range tests.
    """
    tasks = result["tasks"]
    rows = -(-len(tasks) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows + 1), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    for axes, (name, task) in zip(panels, tasks.items(), strict=False):
        _panel(axes, name, task)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel("peak learning rate")
    figure.supylabel("validation loss after training")
    figure.savefig(path, dpi=110)
    return figure


def libraries(result: dict[str, Any]) -> Figure:
    """Returns the chart that the page begins with: two bars for each library's suggestion."""
    sets = {"new tasks": result[NEW], "others": chosen_on(result)}
    methods = list(dict.fromkeys([*FIRST, *LIBRARIES]))
    figure = Figure(figsize=(5.6, 0.4 * len(methods) + 1.2), layout="constrained")
    axes = figure.subplots()
    looks = {"new tasks": ("#0072b2", ""), "others": ("#b3cde3", "//")}
    for index, (label, tasks) in enumerate(sets.items()):
        colour, hatch = looks[label]
        means = [mean_regret(tasks, method) for method in methods]
        rows = np.arange(len(methods)) + 0.38 * index
        title = f"{len(tasks)} {label}"
        shown = np.minimum(means, LONGEST)
        axes.barh(rows, shown, 0.36, color=colour, hatch=hatch, edgecolor="black", label=title)
        for row, mean in zip(rows, means, strict=True):
            text = f" {mean:.2f}" if mean <= LONGEST else f" … {mean:.2f}"
            axes.annotate(text, (min(mean, LONGEST), row), va="center", fontsize="small")
    names = [re.sub(r"[*`]", "", LIBRARIES.get(method, method)) for method in methods]
    axes.set(xlim=(0, 1.2 * LONGEST), yticks=np.arange(len(names)) + 0.19)
    axes.set_yticklabels(names, fontsize="small")
    axes.set_xlabel("mean regret: how much higher the loss ends than it could", fontsize="small")
    axes.tick_params(axis="x", labelsize="small")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(fontsize="small", loc="outside upper center", ncols=2, frameon=False)
    return figure


def _panel(axes: Axes, name: str, task: dict[str, Any]) -> None:
    rates = np.array(task["rates"])
    losses, spread = np.array(task["valid_losses"]), np.array(task["valid_spread"])
    axes.plot(rates, losses, color="0.3", linewidth=1)
    axes.fill_between(rates, np.maximum(losses - spread, losses / 2), losses + spread, color="0.85")
    for place, (rule, verdict) in enumerate(task["rules"].items()):
        logs = [np.log10(rate) for rate in verdict["rates"] if rate is not None]
        # A method without any suggestion gets no marker, yet its place in the legend.
        typical = float(np.median(logs)) if logs else np.nan
        axes.plot(
            10**typical,
            np.interp(typical, np.log10(rates), losses),
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            color=f"C{place % 10}",
            markeredgecolor="black",
            markeredgewidth=0.5,
            markersize=8,
            label=rule,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"{name} ({task['batch_size']})", fontsize="small")
