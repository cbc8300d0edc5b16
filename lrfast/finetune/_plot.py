"""Figure of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lrfast._utils.figures import FloatArray, finish, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DrawnStage(Protocol):
    """The part of a :class:`lrfast.Stage` that is drawn."""

    @property
    def losses(self) -> FloatArray: ...
    @property
    def rates(self) -> FloatArray: ...


class DrawnHistory(Protocol):
    """The part of a :class:`lrfast.History` that is drawn."""

    @property
    def stages(self) -> Sequence[DrawnStage]: ...
    @property
    def losses(self) -> FloatArray: ...
    @property
    def epochs(self) -> Sequence[Mapping[str, float]]: ...


def plot_history(history: DrawnHistory, path: str | Path | None = None) -> Figure:
    """Return a figure of a fine-tuning run: losses above, learning rates below.

    Args:
        history: ``tuner.history``.
        path: Where to save the figure too; the suffix names the format.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(8.0, 6.0)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.set(title="Fine-tuning", ylabel="loss")
    rates.set(xlabel="step", ylabel="learning rate")
    if not history.stages:
        return finish(figure, path)
    losses.plot(history.losses, color="0.6", linewidth=1, label="training loss")
    measured = [(row["step"], row["valid_loss"]) for row in history.epochs if "valid_loss" in row]
    if measured:
        losses.plot(*zip(*measured, strict=True), "C3o-", markersize=3, label="validation loss")
    start = 0
    for stage in history.stages:
        steps = start + np.arange(len(stage.losses))
        for group, column in enumerate(stage.rates.T):
            label = f"group {group}" if start == 0 else None
            style = line_style(group, stage.rates.shape[1], len(steps))
            rates.plot(steps, column, **style, label=label)
        losses.axvline(start, color="0.8", linewidth=0.8)
        start += len(stage.losses)
    rates.set_yscale("log")
    losses.legend(fontsize="small")
    rates.legend(fontsize="small")
    return finish(figure, path)
