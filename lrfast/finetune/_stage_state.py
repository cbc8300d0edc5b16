"""Where a stage stands: all of it that is neither in the model nor in the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lrfast._utils.validation import (
    check_bool,
    check_dict,
    check_finite,
    check_int,
    check_list,
    check_str,
)
from lrfast.finetune._history import Stage, epoch_row, floats
from lrfast.schedules import Schedule
from lrfast.training._random import RandomStates


@dataclass(frozen=True)
class Moment:
    """What to put back before training goes on as if nothing had been in between.

    Args:
        random: States of all random number generators.
        modes: Train or eval of each module, by its place in ``model.modules()``.
    """

    random: RandomStates
    modes: list[bool]

    @classmethod
    def take(cls, model: nn.Module, loaders: Iterable[object]) -> Moment:
        """Return the moment that is now."""
        return cls(RandomStates.take(loaders), [module.training for module in model.modules()])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Moment:
        """Return the moment that a checkpoint holds.

        Raises:
            ValueError: If it holds none.
        """
        check_dict("a moment", data, ["random", "modes"])
        modes = [check_bool("modes", mode) for mode in check_list("modes", data["modes"])]
        return cls(RandomStates.from_dict(data["random"]), modes)

    def put_back(self, model: nn.Module, loaders: Iterable[object]) -> None:
        """Make now that moment."""
        for module, mode in zip(model.modules(), self.modes, strict=True):
            module.training = mode
        self.random.put_back(loaders)


@dataclass
class Run:
    """A stage under way: its plan, and how far it has come.

    Args:
        name: What is run, such as "one-cycle".
        schedules: Multiply the param groups' rates: one for all of them, or one for each.
        epochs: Passes over the training data in all.
        epoch_steps: Updates in one pass.
        timetable: First layer group to train, by the epoch from whose start on it is.
        precompute: Whether the head alone trains, on features of the frozen body.
        epoch: Passes done.
        used: Batches of the present pass done.
        step: Updates done in all; those that a scaler skipped included.
        applied: Steps of the schedule done.
        losses: Training losses so far; a skipped update has none.
        factors: What a loss-driven schedule multiplied the rates by, for each loss.
        rows: What validation found, one row per epoch.
        frozen: From which loss on which param groups were frozen.
        seconds: Time spent so far.
        is_resumed: Whether this is the continuation of an interrupted stage.
        has_ended_pass: Whether the present pass has no more batches.
        order: Random states at the start of the present pass; None before it.
        moment: Random states and modes where training was interrupted; None while it runs.
    """

    name: str
    schedules: tuple[Schedule, ...]
    epochs: int
    epoch_steps: int
    timetable: dict[int, int] = field(default_factory=dict)
    precompute: bool = False
    epoch: int = 0
    used: int = 0
    step: int = 0
    applied: int = 0
    losses: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    factors: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    rows: list[dict[str, float]] = field(default_factory=list)
    frozen: list[tuple[int, list[bool]]] = field(default_factory=list)
    seconds: float = 0.0
    is_resumed: bool = False
    has_ended_pass: bool = False
    order: RandomStates | None = None
    moment: Moment | None = None

    @property
    def total_steps(self) -> int:
        """Updates in all."""
        return self.epochs * self.epoch_steps

    @property
    def is_cycle_end(self) -> bool:
        """Whether a cycle of the head's schedule ended within the epoch that ended last.

        A cycle ends at the last step before the rate turns up again after it has fallen, and with
        the schedule.
        """
        ends = cycle_ends(self.schedules[-1], self.total_steps)
        first = (self.epoch - 1) * self.epoch_steps
        return bool(((ends > first) & (ends <= self.epoch * self.epoch_steps)).any())

    def of_groups(self, count: int) -> list[Schedule]:
        """Return one schedule per param group.

        Args:
            count: Param groups.
        """
        return list(self.schedules) * (count if len(self.schedules) == 1 else 1)

    def stage(self, own_rates: list[float], outcome: str) -> Stage:
        """Return what happened so far.

        Args:
            own_rates: The param groups' rates without the schedule.
            outcome: How it ended.
        """
        steps = np.arange(len(self.losses))
        values = {schedule: schedule.values(steps) for schedule in self.schedules}
        factors = [values[schedule] for schedule in self.of_groups(len(own_rates))]
        rates = np.stack(factors, axis=1) * np.asarray(own_rates)[None, :]
        rates *= self.factors[:, None]
        ends = [first for first, _ in self.frozen[1:]] + [len(steps)]
        for (first, frozen), end in zip(self.frozen, ends, strict=False):  # none before epoch 0
            rates[first:end, frozen] = math.nan
        return Stage(
            name=self.name,
            losses=self.losses,
            rates=rates,
            momentum=self.schedules[-1].momentum(steps),
            epochs=tuple(self.rows),
            outcome=outcome,
            seconds=self.seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain numbers, strings, lists and tensors."""
        assert self.moment is not None
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "schedules": [schedule.to_dict() for schedule in self.schedules],
            "losses": torch.from_numpy(self.losses),
            "factors": torch.from_numpy(self.factors),
            "rows": [dict(row) for row in self.rows],
            "frozen": [[first, list(flags)] for first, flags in self.frozen],
            "order": None if self.order is None else self.order.to_dict(),
            "random": self.moment.random.to_dict(),
            "modes": self.moment.modes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Return the run that :meth:`to_dict` described.

        Args:
            data: Such a description.

        Raises:
            ValueError: If it described none.
        """
        check_dict("a run", data, (*_PLAIN, "schedules", "losses", "rows", "frozen", "order"))
        order = data["order"]
        losses = floats("losses", data["losses"])
        factors = floats("factors", data["factors"]) if "factors" in data else np.ones(len(losses))
        if len(factors) != len(losses):
            raise ValueError(f"factors must be {len(losses)}, one per loss, got {len(factors)}")
        plain = _plain(data)
        if len(losses) > plain["step"]:
            raise ValueError(
                f"losses must be {plain['step']} at most, one per step, got {len(losses)}"
            )
        return cls(
            schedules=tuple(
                Schedule.from_dict(each) for each in check_list("schedules", data["schedules"], 1)
            ),
            losses=losses,
            factors=factors,
            rows=[epoch_row(row) for row in check_list("rows", data["rows"])],
            frozen=[_frozen(entry, len(losses)) for entry in check_list("frozen", data["frozen"])],
            order=None if order is None else RandomStates.from_dict(order),
            moment=Moment.from_dict(data),
            **plain,
        )

    def resumed(self) -> Run:
        """Return the same run, marked as a continuation, with lists of its own."""
        return replace(self, is_resumed=True, rows=list(self.rows), frozen=list(self.frozen))


_MAX_RUN = 2**31  # steps: 16 GiB of losses
_PLAIN = (
    *("name", "epochs", "epoch_steps", "timetable", "precompute", "epoch", "used", "step"),
    *("applied", "seconds", "has_ended_pass"),
)


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is neither tensor nor object, checked."""
    counts = {
        name: check_int(name, data[name], least, _MAX_RUN)
        for name, least in (
            *(("epochs", 1), ("epoch_steps", 1)),
            *(("epoch", 0), ("used", 0), ("step", 0), ("applied", 0)),
        )
    }
    if counts["epochs"] * counts["epoch_steps"] > _MAX_RUN:
        raise ValueError(f"epochs must be of {_MAX_RUN} steps in all at most, got {counts}")
    most = counts["epoch"] * counts["epoch_steps"] + counts["used"]  # an update has a batch or more
    if counts["step"] > most:
        raise ValueError(f"step must be {most} at most after the batches used, got {counts}")
    timetable = check_dict("timetable", data["timetable"])
    return counts | {
        "name": check_str("name", data["name"]),
        "timetable": {
            check_int("timetable", epoch): check_int("timetable", group, least=-_MAX_RUN)
            for epoch, group in timetable.items()
        },
        "precompute": check_bool("precompute", data["precompute"]),
        "seconds": check_finite("seconds", data["seconds"]),
        "has_ended_pass": check_bool("has_ended_pass", data["has_ended_pass"]),
    }


def _frozen(entry: Any, losses: int) -> tuple[int, list[bool]]:
    first, flags = check_list("frozen", entry, least=2)
    return (
        check_int("frozen", first, most=losses),
        [check_bool("frozen", each) for each in check_list("frozen", flags)],
    )


def cycle_ends(schedule: Schedule, total_steps: int) -> npt.NDArray[np.int64]:
    """Return the counts of steps after which a cycle of the schedule is over.

    Args:
        schedule: Any.
        total_steps: Steps that are made; the last one ends a cycle.
    """
    values = schedule.values(np.arange(total_steps))
    change = np.diff(values)
    moving = np.flatnonzero(change)
    turns = moving[1:][(change[moving[:-1]] < 0) & (change[moving[1:]] > 0)]
    return np.append(turns + 1, total_steps)
