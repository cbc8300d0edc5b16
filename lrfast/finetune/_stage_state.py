"""The state of a stage that is neither in the model nor in the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypedDict

import numpy as np
from torch import nn
from torch.optim import Optimizer

from lrfast._utils.decode import Check, decode_fields, encode, list_of, optional
from lrfast._utils.figures import FloatArray
from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    check_bool,
    check_dict,
    check_finite,
    check_int,
    check_list,
    check_str,
)
from lrfast.finetune._history import Stage, epoch_rows, floats
from lrfast.groups import Rates, spread
from lrfast.schedules import Schedule
from lrfast.schedules._schedule import cycle_ends
from lrfast.training._data import num_batches
from lrfast.training._random import RandomStates


class StageOptions(TypedDict, total=False):
    """Keyword arguments of all stages, see :meth:`FineTuner.fit`."""

    timetable: Mapping[int, int] | None
    precompute: bool


class OneCycleOptions(StageOptions, total=False):
    """Keyword arguments of both stages of :meth:`FineTuner.fine_tune`."""

    final_div_factor: float
    momentum: tuple[float, float] | None


@dataclass(frozen=True)
class ResumePoint:
    """Random states, and the modes of ``model.modules()``, from which training goes on exactly."""

    random: RandomStates
    modes: list[bool]

    @classmethod
    def take(cls, model: nn.Module, loaders: Iterable[object]) -> ResumePoint:
        """Return the states and modes of now."""
        return cls(RandomStates.take(loaders), [module.training for module in model.modules()])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResumePoint:
        """Return the states and modes that a checkpoint holds."""
        checks = {"random": _random, "modes": list_of(check_bool)}
        return cls(**decode_fields("a moment", data, checks))

    def to_dict(self) -> dict[str, Any]:
        """Return the states and modes as numbers, strings, lists and tensors."""
        return {"random": self.random.to_dict(), "modes": self.modes}

    def restore(self, model: nn.Module, loaders: Iterable[object]) -> None:
        """Set generators and modules to the states and modes."""
        for module, mode in zip(model.modules(), self.modes, strict=True):
            module.training = mode
        self.random.restore(loaders)


@public_in("lrfast.finetune")
@dataclass
class Run:
    """A stage under way: its plan and its progress, as ``tuner.running`` shows them to callbacks.

    Args:
        name: The schedule's name, such as "one-cycle".
        schedules: Multiply the param groups' learning rates: one for all groups, or one for each.
        epochs: Epochs planned, 1 or more.
        epoch_steps: Updates per epoch, 1 or more.
        timetable: Unfreezing schedule: the first layer group that trains, by the epoch from which
            on it does (default: none).
        precompute: Whether only the head trains, on features of the frozen body (default False).
        epoch: Epochs done.
        used: Batches of the current epoch done.
        step: Updates done in the stage, those that a scaler skipped included.
        applied: Steps of the schedule done.
        losses: Training losses so far, float64 [losses]; a skipped update has none.
        factors: A loss-driven schedule's factor of the learning rates at each loss, 1 without one.
        rows: Validation measures, one row per epoch done.
        frozen: For each epoch, its first loss's index and which param groups were frozen from it.
        seconds: Time spent so far, in seconds.
        is_resumed: Whether this continues an interrupted stage.
        has_ended_pass: Whether the current epoch has no more batches.
        order: Random states at the start of the current epoch; None before it.
        moment: Random states and modes at an interruption; None while the stage runs.
        search: State of the range test that its first steps are; None without one, or after it.
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
    losses: FloatArray = field(default_factory=lambda: np.empty(0))
    factors: FloatArray = field(default_factory=lambda: np.empty(0))
    rows: list[dict[str, float]] = field(default_factory=list)
    frozen: list[tuple[int, list[bool]]] = field(default_factory=list)
    seconds: float = 0.0
    is_resumed: bool = False
    has_ended_pass: bool = False
    order: RandomStates | None = None
    moment: ResumePoint | None = None
    search: Mapping[str, Any] | None = None

    @property
    def total_steps(self) -> int:
        """Updates of the whole stage."""
        return self.epochs * self.epoch_steps

    @property
    def is_cycle_end(self) -> bool:
        """Whether a cycle of the head's schedule ended within the last epoch done.

        A cycle ends where the learning rate has fallen and rises again, and with the schedule.
        """
        ends = cycle_ends(self.schedules[-1], self.total_steps)
        first = (self.epoch - 1) * self.epoch_steps
        return bool(((ends > first) & (ends <= self.epoch * self.epoch_steps)).any())

    def of_groups(self, count: int) -> list[Schedule]:
        """Return one schedule per param group.

        Args:
            count: Number of param groups.
        """
        return list(self.schedules) * (count if len(self.schedules) == 1 else 1)

    def stage(self, own_rates: list[float], outcome: str, names: Sequence[str] = ()) -> Stage:
        """Return the record of the steps so far.

        Args:
            own_rates: The param groups' learning rates without the schedule.
            outcome: How the stage ended, see :class:`lrfast.Stage`.
            names: Names of the param groups; default none.
        """
        steps = np.arange(len(self.losses))
        values = {schedule: schedule.values(steps) for schedule in self.schedules}
        factors = [values[schedule] for schedule in self.of_groups(len(own_rates))]
        rates = np.stack(factors, axis=1) * np.asarray(own_rates) * self.factors[:, None]
        ends = [first for first, _ in self.frozen[1:]] + [len(steps)]
        for (first, frozen), end in zip(self.frozen, ends, strict=False):  # none before epoch 0
            rates[first:end, frozen] = math.nan
        momentum, rows = self.schedules[-1].momentum(steps), tuple(self.rows)
        recorded = (self.name, self.losses, rates, momentum, rows, outcome, self.seconds)
        return Stage(*recorded, tuple(names))

    def to_dict(self) -> dict[str, Any]:
        """Return the interrupted run as numbers, strings, lists and tensors, for checkpoints."""
        assert self.moment is not None
        saved = {name: encode(getattr(self, name)) for name in (*_RUN, "factors", "search")}
        return saved | self.moment.to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Return the run that :meth:`to_dict` described.

        Args:
            data: The description.

        Raises:
            ValueError: If it does not describe a run.
        """
        run = decode_fields("a run", data, _RUN)
        losses, steps = len(run["losses"]), run["step"]
        factors = floats("factors", data["factors"]) if "factors" in data else np.ones(losses)
        if len(factors) != losses:
            raise ValueError(f"factors must be {losses}, one per loss, got {len(factors)}")
        _check_counts({name: run[name] for name in _COUNTS})
        if losses > steps:
            raise ValueError(f"losses must be {steps} at most, one per step, got {losses}")
        for first, _ in run["frozen"]:
            check_int("frozen", first, most=losses)
        search = optional(check_dict)("search", data.get("search"))
        schedules, moment = tuple(run.pop("schedules")), ResumePoint.from_dict(data)
        return cls(schedules=schedules, factors=factors, search=search, moment=moment, **run)

    def resumed(self) -> Run:
        """Return a copy, with lists of its own, marked as a continuation."""
        return replace(self, is_resumed=True, rows=list(self.rows), frozen=list(self.frozen))


def _check_counts(counts: dict[str, int]) -> None:
    """Check that the numbers of epochs, batches and steps of a run go together."""
    if counts["epochs"] * counts["epoch_steps"] > _MAX_RUN:
        raise ValueError(f"epochs must be of {_MAX_RUN} steps in all at most, got {counts}")
    # An update has a batch or more. Later epochs may have more batches than their length says.
    if counts["epoch"] == 0 and counts["step"] > counts["used"]:
        raise ValueError(f"step must be {counts['used']} at most after the batches used")


def _timetable(name: str, value: Any) -> dict[int, int]:
    found = check_dict(name, value)
    return {check_int(name, k): check_int(name, v, least=-_MAX_RUN) for k, v in found.items()}


def _frozen(name: str, entry: Any) -> tuple[int, list[bool]]:
    first, flags = check_list(name, entry, least=2)
    return first, list_of(check_bool)(name, flags)


def _random(name: str, value: Any) -> RandomStates:
    return RandomStates.from_dict(value)


_MAX_RUN = 2**31  # steps: 16 GiB of losses
_count: Final = partial(check_int, most=_MAX_RUN)
_COUNTS: Final[dict[str, Check]] = {
    "epochs": partial(_count, least=1),
    "epoch_steps": partial(_count, least=1),
    **dict.fromkeys(("epoch", "used", "step", "applied"), _count),
}
_RUN: Final[dict[str, Check]] = _COUNTS | {
    "name": check_str,
    "schedules": list_of(lambda _, each: Schedule.from_dict(each), least=1),
    "timetable": _timetable,
    "precompute": check_bool,
    "losses": floats,
    "rows": epoch_rows,
    "frozen": list_of(_frozen),
    "seconds": check_finite,
    "has_ended_pass": check_bool,
    "order": optional(_random),
}


def group_rates(optimizer: Optimizer, lr: Rates, layers: int) -> list[float]:
    """Return one learning rate per param group from those of the layer groups."""
    rates = spread(lr, layers)
    return [rates[group.get("layer", i)] for i, group in enumerate(optimizer.param_groups)]


def epoch_batches(train_loader: Iterable[Any]) -> int:
    """Return the number of batches of an epoch, 1 or more."""
    batches = num_batches(train_loader)
    if batches is None:
        raise TypeError(
            f"train_loader must have a length, got {type(train_loader).__name__} without one; the "
            "schedule needs to know its steps: pass a DataLoader or a list of batches"
        )
    if batches < 1:
        raise ValueError("train_loader must hold at least one batch, got none")
    return batches
