"""The history of a fine-tuning run: losses, learning rates and validation of each stage."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import torch

from lrfast._utils.arguments import checked, checked_methods
from lrfast._utils.atomic_write import replacing
from lrfast._utils.decode import Check, decode_fields, encode, list_of, optional
from lrfast._utils.figures import FloatArray, finish, line_style, panels_of
from lrfast._utils.public import public_in
from lrfast._utils.validation import check_dict, check_finite, check_float, check_str, check_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@public_in("lrfast.history")
@dataclass(frozen=True)
@checked_methods()
class Stage:
    """The record of one stage, that is, of one call of a fit method.

    Args:
        name: The schedule's name, such as "one-cycle".
        losses: Training losses, [steps].
        rates: Learning rates of the param groups, [steps, groups]; NaN where a group was frozen.
        momentum: Momentum or beta1, [steps]; None if the schedule sets none.
        epochs: One row per epoch: "step", the steps until its end, then the validation measures.
        outcome: "completed", "non-finite" (a loss that is not finite ended it; it caused no
            update), "stopped" (on request, as by an early stop) or "interrupted" (by an exception).
        seconds: Duration in seconds.
    """

    name: str
    losses: FloatArray
    rates: FloatArray
    momentum: FloatArray | None
    epochs: tuple[dict[str, float], ...]
    outcome: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as numbers, strings, lists and tensors, for checkpoints."""
        return {name: encode(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """Return the stage that :meth:`to_dict` described.

        Args:
            data: The description; its arrays are float64 tensors.

        Raises:
            ValueError: If it does not describe a stage.
        """
        found = decode_fields("a stage", data, _STAGE)
        arrays = (found["losses"], found["rates"], found["momentum"])
        if len({len(each) for each in arrays if each is not None}) > 1:
            raise ValueError("losses, rates and momentum must be as many, got different numbers")
        return cls(**found | {"epochs": tuple(found["epochs"])})


@public_in("lrfast.history")
@dataclass
@checked_methods()
class History:
    """All stages of a fine-tuning run, in order.

    Args:
        stages: The stages, oldest first (default none).

    Example:
        >>> import lrfast
        >>> lrfast.History().epochs
        []
    """

    stages: list[Stage] = field(default_factory=list)

    @property
    def losses(self) -> FloatArray:
        """Training losses of all stages, [steps]."""
        return np.concatenate([np.empty(0), *(stage.losses for stage in self.stages)])

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Validation after each epoch; "step" counts from the start of the first stage."""
        rows, offset = [], 0
        for stage in self.stages:
            rows += [row | {"step": row["step"] + offset} for row in stage.epochs]
            offset += len(stage.losses)
        return rows

    def to_csv(self, path: str | Path) -> None:
        """Write one row per step: stage, step, loss, momentum, learning rate of each group.

        Args:
            path: The file; an existing one is replaced.
        """
        groups = max((stage.rates.shape[1] for stage in self.stages), default=0)
        with replacing(path, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            lrs = [f"lr_{group}" for group in range(groups)]
            writer.writerow(["stage", "step", "loss", "momentum", *lrs])
            step = 0
            for stage in self.stages:
                for k, loss in enumerate(stage.losses.tolist()):
                    momentum = "" if stage.momentum is None else float(stage.momentum[k])
                    writer.writerow([stage.name, step, loss, momentum, *stage.rates[k].tolist()])
                    step += 1

    def to_dict(self) -> dict[str, Any]:
        """Return all stages as numbers, strings, lists and tensors, for checkpoints."""
        return {"stages": encode(self.stages)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """Return the history that :meth:`to_dict` described.

        Args:
            data: The description; its arrays are float64 tensors.

        Raises:
            ValueError: If it does not describe a history.
        """
        stages = list_of(lambda _, stage: Stage.from_dict(stage))
        return cls(**decode_fields("a history", data, {"stages": stages}))

    @overload
    def plot(self, path: str | Path | None = None, *, ax: None = None) -> Figure: ...
    @overload
    def plot(self, path: str | Path | None = None, *, ax: Axes) -> Axes: ...
    def plot(self, path: str | Path | None = None, *, ax: Axes | None = None) -> Figure | Axes:
        """Draw losses, learning rates and validation over the steps; needs matplotlib.

        Args:
            path: File to save the figure to, in the format of its suffix; None (default): no file.
            ax: Axes of matplotlib to draw the losses into; None (default): a new figure.

        Returns:
            The figure, or the axes that were given.
        """
        return plot_history(self, path, ax=ax)


@overload
def plot_history(
    history: History, path: str | Path | None = None, *, ax: None = None
) -> Figure: ...
@overload
def plot_history(history: History, path: str | Path | None = None, *, ax: Axes) -> Axes: ...
@checked
def plot_history(
    history: History, path: str | Path | None = None, *, ax: Axes | None = None
) -> Figure | Axes:
    """Return a figure of a fine-tuning run: losses above, learning rates below.

    Args:
        history: ``tuner.history``.
        path: Where to save the figure too; the suffix names the format.
        ax: Axes of matplotlib to draw the losses into, which are returned; None: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
    """
    losses, *below = panels_of(ax, 2, (8.0, 6.0), height_ratios=(2, 1))
    losses.set(title="Fine-tuning", ylabel="loss")
    (below[-1] if below else losses).set_xlabel("step")
    for rates in below:
        rates.set_ylabel("learning rate")
    if not history.stages:
        return finish(losses, path, ax)
    losses.plot(history.losses, color="0.6", linewidth=1, label="training loss")
    measured = [(row["step"], row["valid_loss"]) for row in history.epochs if "valid_loss" in row]
    if measured:
        losses.plot(*zip(*measured, strict=True), "C3o-", markersize=3, label="validation loss")
    start = 0
    for stage in history.stages:
        steps = start + np.arange(len(stage.losses))
        for rates, (group, column) in product(below, enumerate(stage.rates.T)):
            label = f"group {group}" if start == 0 else None
            style = line_style(group, stage.rates.shape[1], len(steps))
            rates.plot(steps, column, **style, label=label)
        losses.axvline(start, color="0.8", linewidth=0.8)
        start += len(stage.losses)
    losses.legend(fontsize="small")
    for rates in below:
        rates.set_yscale("log")
        rates.legend(fontsize="small")
    return finish(losses, path, ax)


def floats(name: str, value: Any, dims: int = 1) -> FloatArray:
    """Return a float64 tensor of a checkpoint as an array."""
    tensor = check_tensor(name, value, torch.float64, dims)
    array: FloatArray = tensor.detach().cpu().contiguous().numpy()
    return array


def epoch_row(row: Any) -> dict[str, float]:
    """Return a checkpoint's row of an epoch: numbers by name, "step" among them."""
    found = check_dict("an epoch", row, ["step"])
    return {check_str("a measure's name", name): check_float(name, found[name]) for name in found}


epoch_rows: Final[Check] = list_of(lambda _, row: epoch_row(row))

_STAGE: Final[dict[str, Check]] = {
    "name": check_str,
    "losses": floats,
    "rates": partial(floats, dims=2),
    "momentum": optional(floats),
    "epochs": epoch_rows,
    "outcome": check_str,
    "seconds": check_finite,
}
