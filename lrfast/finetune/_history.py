"""The history of a fine-tuning run: losses, learning rates and validation of each stage."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lrfast._utils.atomic_write import replacing
from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    check_dict,
    check_finite,
    check_float,
    check_list,
    check_str,
    check_tensor,
)
from lrfast.finetune._plot import plot_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History", "Stage"]

FloatArray = npt.NDArray[np.float64]


@public_in("lrfast.history")
@dataclass(frozen=True)
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
        return {
            "name": self.name,
            "losses": torch.from_numpy(self.losses),
            "rates": torch.from_numpy(self.rates),
            "momentum": None if self.momentum is None else torch.from_numpy(self.momentum),
            "epochs": [dict(row) for row in self.epochs],
            "outcome": self.outcome,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """Return the stage that :meth:`to_dict` described.

        Args:
            data: The description; its arrays are float64 tensors.

        Raises:
            ValueError: If it does not describe a stage.
        """
        check_dict("a stage", data, [field.name for field in fields(cls)])
        losses, rates = floats("losses", data["losses"]), floats("rates", data["rates"], 2)
        momentum = data["momentum"]
        if momentum is not None:
            momentum = floats("momentum", momentum)
        if len({len(each) for each in (losses, rates, momentum) if each is not None}) > 1:
            raise ValueError("losses, rates and momentum must be as many, got different numbers")
        return cls(
            name=check_str("name", data["name"]),
            losses=losses,
            rates=rates,
            momentum=momentum,
            epochs=tuple(epoch_row(row) for row in check_list("epochs", data["epochs"])),
            outcome=check_str("outcome", data["outcome"]),
            seconds=check_finite("seconds", data["seconds"]),
        )


@public_in("lrfast.history")
@dataclass
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
        rows = []
        offset = 0
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
            writer.writerow(
                ["stage", "step", "loss", "momentum", *(f"lr_{g}" for g in range(groups))]
            )
            step = 0
            for stage in self.stages:
                for k, loss in enumerate(stage.losses.tolist()):
                    momentum = "" if stage.momentum is None else float(stage.momentum[k])
                    writer.writerow([stage.name, step, loss, momentum, *stage.rates[k].tolist()])
                    step += 1

    def to_dict(self) -> dict[str, Any]:
        """Return all stages as numbers, strings, lists and tensors, for checkpoints."""
        return {"stages": [stage.to_dict() for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """Return the history that :meth:`to_dict` described.

        Args:
            data: The description; its arrays are float64 tensors.

        Raises:
            ValueError: If it does not describe a history.
        """
        stages = check_dict("a history", data, ["stages"])["stages"]
        return cls([Stage.from_dict(stage) for stage in check_list("stages", stages)])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw losses, learning rates and validation over the steps; needs matplotlib.

        Args:
            path: File to save the figure to, in the format of its suffix; None (default): no file.

        Returns:
            The figure.
        """
        return plot_history(self, path)


def floats(name: str, value: Any, dims: int = 1) -> FloatArray:
    """Return a float64 tensor of a checkpoint as an array."""
    tensor = check_tensor(name, value, torch.float64, dims)
    array: FloatArray = tensor.detach().cpu().contiguous().numpy()
    return array


def epoch_row(row: Any) -> dict[str, float]:
    """Return a checkpoint's row of an epoch: numbers by name, "step" among them."""
    found = check_dict("an epoch", row, ["step"])
    return {check_str("a measure's name", name): check_float(name, found[name]) for name in found}
