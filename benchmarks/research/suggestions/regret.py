"""What a suggested rate costs, by what training at every rate of a grid came to.

With L the mean over seeds of the validation loss after training, interpolated in the logarithm of
the rate, the regret of a rate is (L(rate) - best) / best, where best is the lowest L of the grid:
0.1 means a loss that is 10 % higher than need be. Regrets above `CAP` count as `CAP`, since one
task whose best loss is near 0 would outweigh all others. A method without a suggestion is charged
the regret of the worst rate of the grid. The share is (L(rate) - best) / (untrained - best): 0 for
the best rate and 1 for a model as good as untrained.

Nothing is trained here: rules can be tuned with `evaluate`, on what a result file keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.sweeps import (
    END_LR,
    GRID_SEEDS,
    NUM_ITER,
    START_LR,
    Runs,
    Size,
    context,
    is_complete,
)
from benchmarks.research.suggestions.tasks import Task
from lrfast.range_test._priors import RatePrior
from lrfast.training._data import DataSize

FloatArray = NDArray[np.float64]

CAP = 10.0


@dataclass(frozen=True)
class Sweep:
    """A range test.

    Args:
        seed: Of data order and new weights.
        lrs: Rates, [points].
        losses: Raw losses, [points].
        context: What is known besides.
        endless: What is where the data do not say how many they are.
    """

    seed: int
    lrs: FloatArray
    losses: FloatArray
    context: RatePrior
    endless: RatePrior


Rule = Callable[[Sweep], float | None]


@dataclass(frozen=True)
class Grid:
    """What training at the rates of the grid came to, as a result file keeps it.

    Losses are means over seeds, and at most those of the untrained model.

    Args:
        untrained: Validation loss of the untrained model.
        rates: Peak rates, [rates].
        valid_losses: Validation losses, [rates].
        valid_spread: Their standard deviations over seeds, [rates].
        train_losses: Training losses, [rates].
        best_accuracy: Validation accuracy at the best rate; None where it has none.
    """

    untrained: float
    rates: list[float]
    valid_losses: list[float]
    valid_spread: list[float]
    train_losses: list[float]
    best_accuracy: float | None


@dataclass(frozen=True)
class Landscape:
    """What was measured of a task.

    Args:
        task: The task.
        size: What there is to learn.
        grid: What training came to.
        sweeps: The range tests.
    """

    task: Task
    size: Size
    grid: Grid
    sweeps: tuple[Sweep, ...]

    @property
    def best(self) -> float:
        """The lowest mean validation loss."""
        return min(self.grid.valid_losses)

    @property
    def best_rate(self) -> float:
        """The rate of the grid with that loss."""
        return self.grid.rates[int(np.argmin(self.grid.valid_losses))]

    def loss(self, rate: float | None) -> float:
        """The loss to expect at a rate; without one, the worst of the grid."""
        losses = self.grid.valid_losses
        if rate is None:
            return max(losses)
        return float(np.interp(math.log10(rate), np.log10(self.grid.rates), losses))

    def regret(self, rate: float | None) -> float:
        """The relative loss beyond the best, at most `CAP`."""
        return min((self.loss(rate) - self.best) / self.best, CAP)

    def share(self, rate: float | None) -> float:
        """The share of what training can gain that is not gained."""
        return (self.loss(rate) - self.best) / (self.grid.untrained - self.best)


def load(
    store: Store, tasks: Iterable[Task], kept: Mapping[str, Any] | None = None
) -> list[Landscape]:
    """Returns what was measured of the tasks, without those of which anything is lacking.

    Args:
        store: What was measured here.
        tasks: The tasks.
        kept: Entries of a result file, by task, for what the store lacks.
    """
    found = (_load(store, task, (kept or {}).get(task.name, {})) for task in tasks)
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


def _load(store: Store, task: Task, kept: Mapping[str, Any]) -> Landscape | None:
    grid = _grid(store, task)
    if grid is None and kept:
        grid = Grid(**{name: kept[name] for name in Grid.__dataclass_fields__})
    sizes = store.records(task, "size")
    named = sizes[0] if sizes else kept
    curves = {record["seed"]: record["losses"] for record in store.records(task, "sweep")}
    if len(curves) < task.sweeps:
        curves = dict(enumerate(read_curves(kept.get("curves", ()))))
    if grid is None or "weight_rms" not in named or not curves:
        return None
    size = Size(**{name: named[name] for name in Size.__dataclass_fields__})
    known, endless = (
        context(task, size, DataSize(size.batch_size, targets)) for targets in (size.targets, None)
    )
    rates: FloatArray = np.geomspace(START_LR, END_LR, NUM_ITER)
    sweeps = [
        Sweep(seed, rates[: len(curves[seed])], np.array(curves[seed]), known, endless)
        for seed in range(task.sweeps)
    ]
    return Landscape(task, size, grid, tuple(sweeps))


def written_curves(sweeps: Iterable[Sweep]) -> list[str]:
    """Returns raw losses as a result file keeps them, one line per range test."""
    return [" ".join(f"{loss:.6g}" for loss in sweep.losses) for sweep in sweeps]


def read_curves(lines: Iterable[str]) -> list[list[float]]:
    """Returns the losses that `written_curves` has written."""
    return [[float(loss) for loss in line.split()] for line in lines]


def _grid(store: Store, task: Task) -> Grid | None:
    starts = {record["seed"]: record for record in store.records(task, "start")}
    runs = {(record["rate"], record["seed"]): record for record in store.records(task, "run")}
    if not is_complete(task, runs):
        return None
    valid = _losses(task, starts, runs, "valid_loss")
    accuracy = _accuracy(runs, task.rates[int(valid.mean(1).argmin())])
    return Grid(
        float(np.mean([starts[seed]["valid_loss"] for seed in GRID_SEEDS])),
        list(task.rates),
        valid.mean(1).tolist(),
        valid.std(1, ddof=1).tolist(),
        _losses(task, starts, runs, "train_loss").mean(1).tolist(),
        None if math.isnan(accuracy) else accuracy,
    )


def _losses(task: Task, starts: dict[int, Record], runs: Runs, name: str) -> FloatArray:
    """Losses [rates, seeds]; those of the untrained model where they are higher or left out."""
    return np.array(
        [
            [
                min(runs.get((rate, seed), starts[seed])[name], starts[seed][name])
                for seed in GRID_SEEDS
            ]
            for rate in task.rates
        ]
    )


def _accuracy(runs: Runs, rate: float) -> float:
    found = [runs[rate, seed]["valid_accuracy"] for seed in GRID_SEEDS if (rate, seed) in runs]
    known = [accuracy for accuracy in found if accuracy is not None]
    return float(np.mean(known)) if known else math.nan
