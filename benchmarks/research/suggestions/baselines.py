"""What a user would do without a range test: a fixed rate, the prior, a search, no rate at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.research.suggestions.crossvalidate import data_of
from benchmarks.research.suggestions.rate_free import METHODS
from benchmarks.research.suggestions.regret import CAP, Landscape, read_curves
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import GRID_SEEDS
from benchmarks.research.suggestions.tasks import GRID

FIXED: Final = "fixed rate"
PRIOR: Final = "prior alone"
SEARCH: Final = "random search, {} runs"
OPTUNA: Final = "Optuna, {} runs"
# Twice the training that every method needs once; about four times a range test with its training,
# or a race with its; four times such a race.
RUNS: Final = (2, 6, 24)
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


def searched(landscape: Landscape) -> dict[str, dict[str, Any]]:
    """Returns what the best of some runs at random rates comes to, on average, by its name.

    Losses are interpolated between those of the grid, which are those that it is judged by.
    """
    draw = np.random.default_rng(0)
    rates = 10 ** draw.uniform(*SEARCHED, (DRAWS, max(RUNS)))
    return _best_of(landscape, SEARCH, rates)


def optuna_searched(
    landscape: Landscape, store: Store, kept: Sequence[str]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Returns the rates that Optuna tried, a line per study, and what the best ones come to."""
    studies = store.records(landscape.task, "optuna")
    lines = [" ".join(f"{lr:g}" for lr in study["rates"]) for study in studies] or list(kept)
    return lines, _best_of(landscape, OPTUNA, np.array(read_curves(lines))) if lines else {}


def _best_of(landscape: Landscape, name: str, rates: Any) -> dict[str, dict[str, Any]]:
    known = np.log10(landscape.grid.rates)
    losses = np.interp(np.log10(rates), known, landscape.grid.valid_losses)
    return {name.format(runs): _verdict(landscape, losses[:, :runs].min(1)) for runs in RUNS}


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
