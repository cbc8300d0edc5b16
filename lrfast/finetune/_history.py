"""The history of a fine-tuning run: losses, learning rates and validation of each stage."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import torch

from lrfast._utils.arguments import checked, checked_methods
from lrfast._utils.atomic_write import replacing
from lrfast._utils.decode import Check, decode_fields, encode, list_of, optional
from lrfast._utils.figures import FloatArray, finish, line_style, step_panels
from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast._utils.validation import check_dict, check_finite, check_float, check_str, check_tensor
from lrfast.finetune._epoch_table import epoch_table, left_out, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@public_in("lrfast.history")
@dataclass(frozen=True, repr=False)
@checked_methods()
class Stage:
    """The record of one stage, that is, of one call of a fit method.

    Printed, it is a table of its epochs.

    Args:
        name: The schedule's name, such as "one-cycle".
        losses: Training losses, [steps].
        rates: Learning rates of the param groups, [steps, groups]; NaN where a group was frozen.
        momentum: Momentum or beta1, [steps]; None if the schedule sets none.
        epochs: One row per epoch: "step", the steps until its end, then the validation measures.
        outcome: "completed", "non-finite" (a loss that is not finite ended it; it caused no
            update), "stopped" (on request, as by an early stop) or "interrupted" (by an exception).
        seconds: Duration in seconds.
        groups: Names of the param groups, [groups]; empty (default) if they have none.
    """

    name: str
    losses: FloatArray
    rates: FloatArray
    momentum: FloatArray | None
    epochs: tuple[dict[str, float], ...]
    outcome: str
    seconds: float
    groups: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = f"{len(self.epochs)} epoch{'s' * (len(self.epochs) != 1)}"
        ended = f"{count}, {len(self.losses)} steps, {self.outcome} in {self.seconds:.1f} s"
        more = left_out(self)
        notes = wrap(f"more in epochs: {', '.join(more)}", 80) if more else []
        table = shortened(epoch_table(self)) if self.epochs else []
        return "\n".join([f"{self.name}: {ended}", *table, *notes])

    __repr__ = __str__

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
        # Files of earlier versions name no groups.
        names = list_of(check_str)("groups", data.get("groups", []))
        return cls(**found | {"epochs": tuple(found["epochs"]), "groups": tuple(names)})


@public_in("lrfast.history")
@dataclass(repr=False)
@checked_methods()
class History:
    """All stages of a fine-tuning run, in order; printed, a table of them.

    Args:
        stages: The stages, oldest first (default none).

    Example:
        >>> import lrfast
        >>> lrfast.History().epochs
        []
    """

    stages: list[Stage] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.stages:
            return "no stages yet"
        columns = ("stage", "epochs", "steps", "train_loss", "valid_loss", "seconds", "outcome")
        rows = []
        for stage in self.stages:
            last = stage.epochs[-1] if stage.epochs else {}
            first = int(stage.epochs[-2]["step"]) if len(stage.epochs) > 1 else 0
            losses = stage.losses[first:]
            train = f"{losses.mean():.4g}" if len(losses) else ""
            valid = f"{last['valid_loss']:.4g}" if "valid_loss" in last else ""
            counts = (str(len(stage.epochs)), str(len(stage.losses)))
            rows.append((stage.name, *counts, train, valid, f"{stage.seconds:.1f}", stage.outcome))
        return Table(columns, rows, right=range(1, 6)).text()

    __repr__ = __str__

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
    def plot(
        self, path: str | Path | None = None, *, log_lr: bool = False, ax: None = None
    ) -> Figure: ...
    @overload
    def plot(self, path: str | Path | None = None, *, log_lr: bool = False, ax: Axes) -> Axes: ...
    def plot(
        self, path: str | Path | None = None, *, log_lr: bool = False, ax: Axes | None = None
    ) -> Figure | Axes:
        """Draw losses, metrics and learning rates over the steps; needs matplotlib.

        Args:
            path: File to save the figure to, in the format of its suffix; None (default): no file.
            log_lr: Whether the axis of the learning rates is logarithmic (default False).
            ax: Axes of matplotlib to draw the losses into; None (default): a new figure.

        Returns:
            The figure, or the axes that were given.
        """
        return plot_history(self, path, log_lr=log_lr, ax=ax)


@overload
def plot_history(
    history: History, path: str | Path | None = None, *, log_lr: bool = False, ax: None = None
) -> Figure: ...
@overload
def plot_history(
    history: History, path: str | Path | None = None, *, log_lr: bool = False, ax: Axes
) -> Axes: ...
@checked
def plot_history(
    history: History,
    path: str | Path | None = None,
    *,
    log_lr: bool = False,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Return a figure of a fine-tuning run: losses, metrics if there are any, learning rates.

    Args:
        history: ``tuner.history``.
        path: Where to save the figure too; the suffix names the format.
        log_lr: Whether the axis of the learning rates is logarithmic (default False).
        ax: Axes of matplotlib to draw the losses into, which are returned; None: a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``ax`` are no axes.
    """
    epochs = history.epochs
    metrics = list(dict.fromkeys(name for row in epochs for name in row))
    metrics = [name for name in metrics if name not in ("step", "valid_loss")]
    losses, *below = step_panels(ax, 3 if metrics else 2)
    losses.set_title("Fine-tuning", pad=16)
    losses.set_ylabel("loss")
    for lrs in below[-1:]:
        lrs.set_ylabel("learning rate")
    if not history.stages:
        return finish(losses, path, ax)
    losses.plot(history.losses, color="0.6", linewidth=1, label="training loss")
    _draw_measure(losses, epochs, "valid_loss", 3, "validation loss")
    for measured in below[:-1]:
        measured.set_ylabel(metrics[0] if len(metrics) == 1 else "metrics")
        for index, name in enumerate(metrics):
            _draw_measure(measured, epochs, name, index, name)
    start, seen = 0, set[str]()
    for stage in history.stages:
        steps = start + np.arange(len(stage.losses))
        for lrs, (group, column) in product(below[-1:], enumerate(stage.rates.T)):
            name = stage.groups[group] if stage.groups else f"group {group}"
            count = stage.rates.shape[1]
            is_named = count <= 10 or group in (0, count - 1)  # of many: body and head
            label = name if is_named and name not in seen else "_"
            lrs.plot(steps, column, **line_style(group, count, len(steps)), label=label)
            seen.add(name)
        losses.axvline(start, color="0.8", linewidth=0.8)
        above = losses.get_xaxis_transform()
        losses.text(start, 1.02, stage.name, transform=above, fontsize="small")
        start += len(stage.losses)
    for lrs in below[-1:]:
        lrs.set_yscale("log" if log_lr else "linear")
    for axes in (losses, *below):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish(losses, path, ax)


def _draw_measure(
    axes: Axes, epochs: list[dict[str, float]], name: str, color: int, label: str
) -> None:
    """Draw a measure of the epochs that have it."""
    points = [(row["step"], row[name]) for row in epochs if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), f"C{color}o-", markersize=3, label=label)


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
