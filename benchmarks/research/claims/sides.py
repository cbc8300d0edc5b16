"""The two sides of a claim: schedules, rates over the layers, and what is frozen when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.train import Optimizer
from lrfast import groups, schedules
from lrfast.groups import Rates
from lrfast.schedules import Schedule


def constant(optimizer: Optimizer, steps: int) -> Schedule:
    """One rate for all steps."""
    return schedules.constant(1.0)


def step_decay(optimizer: Optimizer, steps: int) -> Schedule:
    """A tenth after half of the steps, a hundredth after three quarters, as in ResNet's paper."""
    return schedules.multistep([steps // 2, 3 * steps // 4], 0.1)


def cosine(optimizer: Optimizer, steps: int) -> Schedule:
    return schedules.cosine(steps)


def triangular2(optimizer: Optimizer, steps: int) -> Schedule:
    """Four triangles from a sixth of the rate, Smith's 0.001 to 0.006, each half as high."""
    return schedules.cyclic(steps // 8, base=1 / 6, mode="triangular2")


def sgdr(optimizer: Optimizer, steps: int) -> Schedule:
    """Three cosines, each twice as long as the one before it."""
    return schedules.sgdr(steps // 7, cycle_mult=2, cycles=3)


def warm_cosine(optimizer: Optimizer, steps: int) -> Schedule:
    """A tenth of the steps up from 0, then the cosine."""
    warm = max(steps // 10, 1)
    return schedules.warmup(warm).then(schedules.cosine(steps - warm))


def uniform(rate: float) -> Rates:
    return rate


def tenfold(rate: float) -> Rates:
    """From a tenth in the first layer group to the rate in the last."""
    return slice(rate / 10, rate)


def head_tenfold(rate: float) -> Rates:
    """A tenth in all layer groups but the last: fastai's slice(rate)."""
    return slice(rate)


@dataclass(frozen=True)
class Side:
    """A way to train.

    Args:
        name: Short, unique within its experiment.
        schedule: Returns the schedule of an optimizer and a number of steps.
        steps: Optimizer steps.
        rates: Returns the rates of the layer groups from one.
        is_gradual: Whether the layer groups are unfrozen one by one, from the head on, the last of
            them after half of the steps.
    """

    name: str
    schedule: Callable[[Optimizer, int], Schedule]
    steps: int
    rates: Callable[[float], Rates] = uniform
    is_gradual: bool = False

    def timetable(self, layers: int, steps: int) -> groups.Timetable:
        """Returns which layer group is the first that trains, by the step."""
        if not self.is_gradual:
            return groups.Timetable({0: 0})
        return groups.gradual(layers, every=max(steps // (2 * (layers - 1)), 1))


# 280 is a whole number of SGDR's cycles (40 + 80 + 160) and of four triangles.
STEPS = 280
FEW_STEPS = 120

SCHEDULES = (
    Side("one constant rate", constant, STEPS),
    Side("one-cycle", train.one_cycle, STEPS),
    Side("step decay", step_decay, STEPS),
    Side("cosine", cosine, STEPS),
    Side("triangular2", triangular2, STEPS),
    Side("SGDR", sgdr, STEPS),
    Side("one constant rate, a quarter of the steps", constant, STEPS // 4),
    Side("one-cycle, a quarter of the steps", train.one_cycle, STEPS // 4),
)
WARM_UPS = (
    Side("cosine", cosine, STEPS),
    Side("warm-up and cosine", warm_cosine, STEPS),
)
FINE_TUNING = (
    Side("one rate for all layers", train.one_cycle, FEW_STEPS),
    Side("slice(r / 10, r)", train.one_cycle, FEW_STEPS, tenfold),
    Side("slice(r)", train.one_cycle, FEW_STEPS, head_tenfold),
    Side("gradual unfreezing", train.one_cycle, FEW_STEPS, is_gradual=True),
)
