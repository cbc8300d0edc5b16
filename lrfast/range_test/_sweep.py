"""Learning rates of a range test: one range per param group, swept together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from lrfast import schedules
from lrfast._utils.public import public_in
from lrfast._utils.validation import check_count, is_int
from lrfast.range_test._peak_rates import peak_of
from lrfast.schedules import Schedule
from lrfast.training._data import check_weights

FloatArray = npt.NDArray[np.float64]
Mode = Literal["exp", "linear"]
Vary = Literal["ratio", "same"] | int  # or the index of the one group that moves


@public_in("lrfast.range_test")
@dataclass(frozen=True)
class Sweep:
    """The learning rates of a range test, point by point and group by group.

    Args:
        mode: "exp" (equal ratios from point to point) or "linear" (equal differences).
        num_iter: Points.
        ranges: First and last learning rate of each param group; twice the same if it is held.
        reference: The group whose learning rates stand on the plot's axis.
    """

    mode: Mode
    num_iter: int
    ranges: tuple[tuple[float, float], ...]
    reference: int

    def parts(self) -> list[tuple[float, Schedule]]:
        """Return each group's base learning rate and the schedule that multiplies it.

        Groups in proportion to the reference share its schedule, so that their ratios hold exactly.
        """
        main = self._schedule(*self.ranges[self.reference])
        parts = []
        for (first, last), ratio in zip(self.ranges, self.ratios, strict=True):
            if ratio is not None:
                parts.append((ratio, main))
            elif first == last:
                parts.append((first, schedules.constant()))
            else:
                parts.append((1.0, self._schedule(first, last)))
        return parts

    def table(self, count: int | None = None) -> FloatArray:
        """Return the learning rates of the first points, or of all of them, [points, groups].

        Args:
            count: Points, the first ones; None for all.
        """
        points = np.arange(self.num_iter if count is None else count)
        columns = [own * schedule.values(points) for own, schedule in self.parts()]
        return np.stack(columns, axis=1)

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each group's learning rate over the reference's; None if that changes on the way."""
        start, end = self.ranges[self.reference]
        return tuple(
            last / end if math.isclose(first / start, last / end, rel_tol=1e-12) else None
            for first, last in self.ranges
        )

    def rates_at(self, lr: float) -> list[float]:
        """Return every group's learning rate at the point where the reference's is ``lr``.

        Those outside the range are extrapolated, but linear ones not below their range.

        Args:
            lr: Learning rate of the reference group.
        """
        start, end = self.ranges[self.reference]
        if self.mode == "exp":
            place = math.log(lr / start) / math.log(end / start)
        else:
            place = max((lr - start) / (end - start), 0.0)
        rates = []
        for (first, last), ratio in zip(self.ranges, self.ratios, strict=True):
            if ratio is not None:
                rates.append(lr * ratio)
            elif first == last:
                rates.append(first)
            elif self.mode == "exp":
                rates.append(_power(first, last / first, place))
            else:
                rates.append(first + place * (last - first))
        return rates

    def _schedule(self, first: float, last: float) -> Schedule:
        if self.mode == "exp":
            return schedules.sweep(first, last, self.num_iter)
        return schedules.linear(first, last, self.num_iter - 1)


def _power(first: float, base: float, exponent: float) -> float:
    try:
        return float(first * base**exponent)
    except OverflowError:  # far beyond the range
        return math.inf


def _check_rates(optimizer: Optimizer) -> None:
    """Refuse an optimizer that estimates its learning rate, by what its param groups hold."""
    if any("growth_rate" in group for group in optimizer.param_groups):
        raise ValueError(
            "optimizer must have a learning rate to find, got a "
            f"{type(optimizer).__name__}, which estimates it: train at lr=1, and compare values of "
            "d_coef, or of lr without one, from 0.5 to 2 if the estimate does not fit"
        )


def make_sweep(
    model: nn.Module,
    optimizer: Optimizer,
    start_lr: float | Sequence[float],
    end_lr: float | Sequence[float],
    num_iter: int,
    mode: Mode,
    vary: Vary,
) -> Sweep:
    """Return the sweep that the arguments of ``lr_find`` describe, once they are checked."""
    num_iter = check_count("num_iter", num_iter, least=2)
    if mode not in ("exp", "linear"):
        raise ValueError(f"mode must be 'exp' or 'linear', got {mode!r}")
    _check_rates(optimizer)
    trained = trained_groups(model, optimizer)
    count = len(optimizer.param_groups)
    if _is_list(start_lr) or _is_list(end_lr):
        if vary != "ratio":
            raise ValueError(
                f"vary must be left out where a range per group is given, got {vary!r}"
            )
        starts = _per_group("start_lr", start_lr, count)
        ends = _per_group("end_lr", end_lr, count)
        bounds = enumerate(zip(starts, ends, strict=True))
        ranges = [_checked_range(start, end, f"[{index}]") for index, (start, end) in bounds]
        return Sweep(mode, num_iter, tuple(ranges), max(trained, key=lambda i: ends[i]))
    swept = _checked_range(start_lr, end_lr)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if vary == "ratio" and any(rates[index] == 0 for index in trained):
        # A scheduler's warm-up is at 0, and hides the ratios of the peaks.
        rates = [peak_of(group) for group in optimizer.param_groups]
    if vary == "same":
        return Sweep(mode, num_iter, (swept,) * count, trained[0])
    if vary == "ratio":
        reference = max(trained, key=lambda i: rates[i])
        highest = rates[reference]
        if not (math.isfinite(highest) and highest > 0):
            raise ValueError(
                "optimizer must have a trained param group with a finite learning rate above 0, "
                f"because the sweep scales those of its groups, got {rates}"
            )
        ratios = [rate / highest for rate in rates]
        ranges = [(swept[0] * ratio, swept[1] * ratio) for ratio in ratios]
        return Sweep(mode, num_iter, tuple(ranges), reference)
    moving = _moving_group(vary, trained, count)
    ranges = [swept if index == moving else (rate, rate) for index, rate in enumerate(rates)]
    return Sweep(mode, num_iter, tuple(ranges), moving)


def _moving_group(vary: Any, trained: list[int], count: int) -> int:
    if not is_int(vary):
        raise ValueError(f"vary must be 'ratio', 'same' or the index of a group, got {vary!r}")
    if not -count <= vary < count:
        raise ValueError(f"vary must be the index of one of {count} param groups, got {vary}")
    moving = vary % count
    if moving not in trained:
        raise ValueError(
            f"vary must be the index of a group that trains, one of {trained}, got {vary}"
        )
    return moving


def trained_groups(model: nn.Module, optimizer: Optimizer) -> list[int]:
    """Indices of the param groups that train."""
    check_weights(model)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "model must have trainable parameters, got none with requires_grad; unfreeze some"
        )
    trained = [
        index
        for index, group in enumerate(optimizer.param_groups)
        if not group.get("frozen") and any(id(p) in trainable for p in group["params"])
    ]
    if not trained:
        raise ValueError(
            "optimizer must hold trainable parameters of the model, got none; was it built before "
            "the model was replaced or moved?"
        )
    return trained


def _is_list(rates: object) -> bool:
    return isinstance(rates, Sequence) and not isinstance(rates, str)


def _per_group(name: str, rates: Any, count: int) -> list[Any]:
    if not _is_list(rates):
        return [rates] * count
    if len(rates) != count:
        raise ValueError(
            f"{name} must be one rate or one per param group: the optimizer has {count} groups, "
            f"got {len(rates)} rates"
        )
    return list(rates)


def _checked_range(start: Any, end: Any, which: str = "") -> tuple[float, float]:
    for name, value in (("start_lr", start), ("end_lr", end)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name}{which} must be a number, got {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}{which} must be finite and above 0, got {value}")
    if end <= start:
        raise ValueError(
            f"end_lr{which} must be above start_lr{which}, got {end} with start_lr{which} {start}"
        )
    return float(start), float(end)
