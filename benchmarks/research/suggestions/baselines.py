"""What a user would do without a range test: a fixed rate, the prior, a search, no rate at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.research.suggestions.crossvalidate import data_of
from benchmarks.research.suggestions.rate_free import METHODS
from benchmarks.research.suggestions.regret import CAP, Landscape
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import GRID_SEEDS
from benchmarks.research.suggestions.tasks import GRID

FIXED: Final = "fixed rate"
PRIOR: Final = "prior alone"
SEARCH: Final = "random search, {} runs"
RUNS: Final = (4, 12)
DRAWS: Final = 2000
SEARCHED: Final = (-5.0, 0.0)  # decades of learning rates


def fixed_rate(landscape: Landscape, others: Sequence[Landscape]) -> float:
    """Returns the rate with the lowest mean regret for the optimizer on other data."""
    elsewhere = [each for each in others if data_of(each) != data_of(landscape)]
    same = [each for each in elsewhere if _optimizer(each) == _optimizer(landscape)]
    means = [np.mean([each.regret(rate) for each in same or elsewhere]) for rate in GRID]
    return GRID[int(np.argmin(means))]


def _optimizer(landscape: Landscape) -> str:
    task = landscape.task
    return task.optimizer.__name__ + " with momentum" * ("momentum" in task.options)


def searched(landscape: Landscape, runs: int) -> dict[str, Any]:
    """Returns what the best of some runs at random rates comes to, on average.

    Losses are interpolated between those of the grid, which are those that it is judged by.
    """
    draw = np.random.default_rng(0)
    rates = 10 ** draw.uniform(*SEARCHED, (DRAWS, runs))
    known = np.log10(landscape.grid.rates)
    losses = np.interp(np.log10(rates), known, landscape.grid.valid_losses).min(1)
    return _verdict(landscape, losses)


def rate_free(
    landscape: Landscape, store: Store, kept: Mapping[str, list[float]]
) -> dict[str, list[float]]:
    """Returns the validation losses of the methods that were measured, by seed."""
    found = dict(kept)
    runs = store.records(landscape.task, "rate-free")
    for method in METHODS:
        losses = [run["valid_loss"] for run in runs if run["method"] == method]
        if len(losses) == len(GRID_SEEDS):
            found[method] = [min(loss, landscape.grid.untrained) for loss in losses]
    return found


def judged(landscape: Landscape, losses: Sequence[float]) -> dict[str, Any]:
    """Returns the verdict on a method by its mean loss over seeds."""
    return _verdict(landscape, np.array([np.mean(losses)]))


def _verdict(landscape: Landscape, losses: Any) -> dict[str, Any]:
    beyond = losses - landscape.best
    return {
        "regret": float(np.minimum(beyond / landscape.best, CAP).mean()),
        "share": float((beyond / (landscape.grid.untrained - landscape.best)).mean()),
        "rates": [],
    }
