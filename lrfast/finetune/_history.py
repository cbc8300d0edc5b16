"""What a fine-tuning run did: per step its losses, rates and momentum, per epoch its validation."""

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


@dataclass(frozen=True)
class Stage:
    """One call of a fit method.

    Args:
        name: What was run, such as "one-cycle".
        losses: Training losses, [steps].
        rates: Rates used, [steps, groups]; NaN in a frozen group's column.
        momentum: Momentum or beta1 used, [steps], or None where the schedule set none.
        epochs: One row per epoch: number of steps until its end, then what validation measured.
        outcome: "completed", "non-finite" (a loss that is not finite ended it; it caused no
            update), "stopped" (on request, as by an early stop) or "interrupted" (by an exception).
        seconds: What it took.
    """

    name: str
    losses: FloatArray
    rates: FloatArray
    momentum: FloatArray | None
    epochs: tuple[dict[str, float], ...]
    outcome: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as plain numbers, strings, lists and tensors, for checkpoints."""
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
            data: Such a description; its arrays are tensors.

        Raises:
            ValueError: If it described none.
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


@dataclass
class History:
    """All stages of a fine-tuning run, in order.

    Args:
        stages: What was run.

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
        """Validation after each epoch; "step" counts steps from the first stage on."""
        rows = []
        offset = 0
        for stage in self.stages:
            rows += [row | {"step": row["step"] + offset} for row in stage.epochs]
            offset += len(stage.losses)
        return rows

    def to_csv(self, path: str | Path) -> None:
        """Write one row per step: stage, step, loss, momentum and the rate of each group.

        Args:
            path: File to write.
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
        """Return all stages as plain numbers, strings, lists and tensors, for checkpoints."""
        return {"stages": [stage.to_dict() for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """Return the history that :meth:`to_dict` described.

        Args:
            data: Such a description; its arrays are tensors.

        Raises:
            ValueError: If it described none.
        """
        stages = check_dict("a history", data, ["stages"])["stages"]
        return cls([Stage.from_dict(stage) for stage in check_list("stages", stages)])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw losses, rates and validation over the steps; needs matplotlib.

        Args:
            path: Where to save the figure too; the suffix names the format.

        Returns:
            The figure.
        """
        return plot_history(self, path)


def floats(name: str, value: Any, dims: int = 1) -> FloatArray:
    """Return a float64 tensor of a checkpoint as an array.

    Raises:
        ValueError: If it is none, or has another number of dimensions.
    """
    array: FloatArray = (
        check_tensor(name, value, torch.float64, dims).detach().cpu().contiguous().numpy()
    )
    return array


def epoch_row(row: Any) -> dict[str, float]:
    """Return what a checkpoint says of an epoch.

    Raises:
        ValueError: If that is not numbers by their names, "step" among them.
    """
    found = check_dict("an epoch", row, ["step"])
    return {check_str("a measure's name", name): check_float(name, found[name]) for name in found}
