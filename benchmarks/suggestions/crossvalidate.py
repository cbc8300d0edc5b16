"""How rule "auto" does on tasks that its constants were not chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.suggestions.regret import Landscape
from lrfast.suggest._auto import Constants, answer
from lrfast.suggest._shape import Shape, read_shape

FloatArray = NDArray[np.float64]

CHOICES = tuple(
    Constants(lower, noise, momentum, typical, shallow, highest)
    for lower, noise, momentum, typical, shallow, highest in product(
        (0.5, 0.7, 1.0),
        (0.0, 0.2),
        (0.0, 0.2, 0.4),
        (0.4, 0.5, 0.6, 0.7),
        (0.05, 0.1, 0.2),
        (0.35, 0.5, 0.7, 1.0),
    )
)
# A rule is chosen for its mean regret, and a little for its worst.
WORST = 0.1


def cross_validate(landscapes: Sequence[Landscape]) -> dict[str, float]:
    """Returns the mean regret on each task with the constants that are best for all others."""
    table = regrets(landscapes)
    left_out = {}
    for place, landscape in enumerate(landscapes):
        others = np.delete(table, place, axis=1)
        chosen = int(np.argmin(others.mean(axis=1) + WORST * others.max(axis=1)))
        left_out[landscape.task.name] = float(table[chosen, place])
    return left_out


def regrets(landscapes: Sequence[Landscape]) -> FloatArray:
    """Mean regrets [choices, tasks]; a curve that "auto" declines is the same for all choices."""
    columns = []
    for landscape in landscapes:
        shapes = [(read_shape(sweep.lrs, sweep.losses), sweep) for sweep in landscape.sweeps]
        columns.append(
            [
                np.mean(
                    [
                        landscape.regret(
                            answer(shape, sweep.context.typical, sweep.context.momentum, choice)[0]
                            if isinstance(shape, Shape)
                            else None
                        )
                        for shape, sweep in shapes
                    ]
                )
                for choice in CHOICES
            ]
        )
    table: FloatArray = np.array(columns).T
    return table
