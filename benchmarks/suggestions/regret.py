"""What a suggested rate costs, by what training at every rate of a grid came to.

With L the mean over seeds of the validation loss after training, interpolated in the logarithm of
the rate, the regret of a rate is (L(rate) - best) / best, where best is the lowest L of the grid:
0.1 means a loss that is 10 % higher than need be. Regrets above `CAP` count as `CAP`, since one
task whose best loss is near 0 would outweigh all others. A rule that declines is charged the regret
of the worst rate of the grid. The share is (L(rate) - best) / (untrained - best): 0 for the best
rate and 1 for a model as good as untrained.

Nothing is trained here: rules can be tuned with `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.suggestions.store import Record, Store
from benchmarks.suggestions.sweeps import GRID, GRID_SEEDS, SWEEP_SEEDS, Runs, context, is_complete
from benchmarks.suggestions.tasks import TASKS, Task
from lrfast.range_test._context import Context

FloatArray = NDArray[np.float64]

CAP = 10.0


@dataclass(frozen=True)
class Sweep:
    """A range test: rates and raw losses, [points], and what was known before it."""

    seed: int
    lrs: FloatArray
    losses: FloatArray
    context: Context


Rule = Callable[[Sweep], float | None]


@dataclass(frozen=True)
class Landscape:
    """What was measured of a task.

    Args:
        task: The task.
        rates: Peak rates of the grid, [rates].
        valid: Validation losses, at most those of the untrained model, [rates, seeds].
        train: Training losses, capped likewise, [rates, seeds].
        accuracy: Mean validation accuracy, NaN where it has none, [rates].
        untrained: Validation losses of the untrained model, [seeds].
        sweeps: The range tests.
    """

    task: Task
    rates: FloatArray
    valid: FloatArray
    train: FloatArray
    accuracy: FloatArray
    untrained: FloatArray
    sweeps: tuple[Sweep, ...]

    @property
    def means(self) -> FloatArray:
        """Mean validation losses, [rates]."""
        means: FloatArray = self.valid.mean(1)
        return means

    @property
    def best(self) -> float:
        """The lowest mean validation loss."""
        return float(self.means.min())

    @property
    def best_rate(self) -> float:
        """The rate of the grid with that loss."""
        return float(self.rates[self.means.argmin()])

    def loss(self, rate: float | None) -> float:
        """The loss to expect at a rate; without one, the worst of the grid."""
        if rate is None:
            return float(self.means.max())
        return float(np.interp(math.log10(rate), np.log10(self.rates), self.means))

    def regret(self, rate: float | None) -> float:
        """The relative loss beyond the best, at most `CAP`."""
        return min((self.loss(rate) - self.best) / self.best, CAP)

    def share(self, rate: float | None) -> float:
        """The share of what training can gain that is not gained."""
        return (self.loss(rate) - self.best) / (float(self.untrained.mean()) - self.best)


def load(store: Store, tasks: Iterable[Task] = TASKS) -> list[Landscape]:
    """Returns what was measured of the tasks, those left out of which the store lacks anything."""
    found = (_load(store, task) for task in tasks)
    return [landscape for landscape in found if landscape is not None]


def evaluate(landscapes: Sequence[Landscape], rule: Rule) -> dict[str, float]:
    """Returns a rule's mean regret over the range tests of each task, by the task's name."""
    return {
        landscape.task.name: float(np.mean([landscape.regret(rate) for rate in rates]))
        for landscape, rates in zip(landscapes, suggested(landscapes, rule), strict=True)
    }


def suggested(landscapes: Sequence[Landscape], rule: Rule) -> list[list[float | None]]:
    """Returns what a rule says of every range test of every task."""
    return [[rule(sweep) for sweep in landscape.sweeps] for landscape in landscapes]


def _load(store: Store, task: Task) -> Landscape | None:
    starts = {record["seed"]: record for record in store.records(task, "start")}
    runs = {(record["rate"], record["seed"]): record for record in store.records(task, "run")}
    sweeps = {record["seed"]: record for record in store.records(task, "sweep")}
    models = store.records(task, "model")
    if len(sweeps) < len(SWEEP_SEEDS) or not is_complete(runs) or not models:
        return None
    known = context(task, models[0]["parameters"])
    accuracies = [_accuracy(runs, rate) for rate in GRID]
    return Landscape(
        task,
        np.array(GRID),
        _losses(starts, runs, "valid_loss"),
        _losses(starts, runs, "train_loss"),
        np.array(accuracies),
        np.array([starts[seed]["valid_loss"] for seed in GRID_SEEDS]),
        tuple(
            Sweep(seed, np.array(sweeps[seed]["lrs"]), np.array(sweeps[seed]["losses"]), known)
            for seed in SWEEP_SEEDS
        ),
    )


def _losses(starts: dict[int, Record], runs: Runs, name: str) -> FloatArray:
    """Losses [rates, seeds]; those of the untrained model where they are higher or left out."""
    return np.array(
        [
            [
                min(runs.get((rate, seed), starts[seed])[name], starts[seed][name])
                for seed in GRID_SEEDS
            ]
            for rate in GRID
        ]
    )


def _accuracy(runs: Runs, rate: float) -> float:
    found = [runs[rate, seed]["valid_accuracy"] for seed in GRID_SEEDS if (rate, seed) in runs]
    known = [accuracy for accuracy in found if accuracy is not None]
    return float(np.mean(known)) if known else math.nan
