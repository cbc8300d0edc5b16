"""How rule "auto" does on tasks that its constants were not chosen on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.research.suggestions.regret import CAP, Landscape, Sweep
from benchmarks.research.suggestions.sweeps import context
from lrfast.range_test._priors import RatePrior
from lrfast.suggest._auto import Constants, Known, answer
from lrfast.suggest._shape import Shape, read_shape
from lrfast.training._data import DataSize

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """One way to suggest: the constants, and how much is made use of besides the optimizer."""

    constants: Constants
    knows: int


KNOWN = range(4)  # nothing; the size of batches; the number of targets; the size of the weights too
CHOICES = tuple(
    Choice(Constants(begin, end, curve, farthest), knows)
    for begin, end, curve, farthest, knows in product(
        (0.0, 0.25),
        (0.5, 0.75, 1.0),
        (0.5, 0.7, 1.0),
        (0.8, 1.0, 1.5),
        KNOWN,
    )
)
# A choice is made for its mean regret, and a little for its worst, when its answers are moved by a
# quarter of a decade to either side, too: so that one next to a cliff is not taken by luck.
WORST = 0.1
MOVED = (10**-0.25, 1.0, 10**0.25)

# What the names of tasks with the same data begin with.
DATA: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "digits": ("digits", "wide-digits", "mnist-to", "autoencoder-to", "same-digit"),
        "mnist": ("mnist", "new-digits"),
        "cars": ("autompg", "foreign-cars"),
        "photos": ("photo", "denoise", "astronaut", "coffee", "camera"),
        "documentation": ("module", "new-modules"),
        "characters": ("characters", "gru-to"),
        "reviews": ("reviews",),
    }
)


def data_of(landscape: Landscape) -> str:
    """Returns the family of a task's data; the longest beginning of its name decides."""
    name = landscape.task.name
    fits = [(len(s), data) for data, starts in DATA.items() for s in starts if name.startswith(s)]
    return max(fits)[1] if fits else name.partition("-")[0]


def optimizer_of(landscape: Landscape) -> str:
    """Returns the family of a task's optimizer: Adam's are one, SGD with momentum another."""
    name = landscape.task.optimizer.__name__
    if name in ("Adam", "AdamW", "NAdam"):
        return "Adam"
    return name + " with momentum" * ("momentum" in landscape.task.options)


FAMILIES: Final[Mapping[str, Callable[[Landscape], str]]] = MappingProxyType(
    {"task": lambda landscape: landscape.task.name, "data": data_of, "optimizer": optimizer_of}
)


def cross_validate(landscapes: Sequence[Landscape]) -> dict[str, dict[str, float]]:
    """Returns the mean regret on each task with the choice that is best on other tasks.

    By what was left out for it: the task alone, all with its data, all with its optimizer.
    """
    rates = [_rates(landscape) for landscape in landscapes]
    pairs = list(zip(landscapes, rates, strict=True))
    moved = np.array(
        [[_regrets(one, factor * of_one) for one, of_one in pairs] for factor in MOVED]
    )
    table, judged = moved[MOVED.index(1.0)].T, moved.mean(0).T
    return {
        title: _left_out(landscapes, table, judged, family) for title, family in FAMILIES.items()
    }


def _left_out(
    landscapes: Sequence[Landscape],
    table: FloatArray,
    judged: FloatArray,
    family: Callable[[Landscape], str],
) -> dict[str, float]:
    """Regrets by task; tables are [choices, tasks]."""
    families = np.array([family(landscape) for landscape in landscapes])
    found = {}
    for place, landscape in enumerate(landscapes):
        others = judged[:, families != families[place]]
        chosen = int(np.argmin(others.mean(axis=1) + WORST * others.max(axis=1)))
        found[landscape.task.name] = float(table[chosen, place])
    return found


def _rates(landscape: Landscape) -> FloatArray:
    """What every choice answers to every range test, [choices, sweeps].

    NaN where there is no answer.
    """
    sweeps = [(sweep, read_shape(sweep.lrs, sweep.losses)) for sweep in landscape.sweeps]
    known = [Known(**asdict(_context(landscape, knows))) for knows in KNOWN]
    return np.array(
        [
            [_rate(sweep, shape, known[choice.knows], choice.constants) for sweep, shape in sweeps]
            for choice in CHOICES
        ]
    )


def _rate(sweep: Sweep, shape: Shape | str, known: Known, constants: Constants) -> float:
    found = answer(sweep.lrs, sweep.losses, shape, known, constants).lr
    return math.nan if found is None else found


def _regrets(landscape: Landscape, rates: FloatArray) -> FloatArray:
    """Mean regrets, [choices], of rates, [choices, sweeps]."""
    losses = np.array(landscape.grid.valid_losses)
    met = np.interp(np.log10(rates), np.log10(landscape.grid.rates), losses)
    met = np.where(np.isnan(rates), losses.max(), met)
    means: FloatArray = np.minimum((met - landscape.best) / landscape.best, CAP).mean(1)
    return means


def _context(landscape: Landscape, knows: int) -> RatePrior:
    """What is known of a task, with as much of it as `KNOWN` says."""
    size = landscape.size if knows > 2 else replace(landscape.size, weight_rms=0.0)
    amounts = DataSize(size.batch_size if knows > 0 else None, size.targets if knows > 1 else None)
    return context(landscape.task, size, amounts)
