"""Range tests of the tasks, and what the rules say of a stored curve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.data import Pair
from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.tasks import Task
from lrfast.range_test._analysis import suggest_all
from lrfast.range_test._priors import RatePrior, WeightStats, rate_prior, weight_stats
from lrfast.training._data import DataSize, num_class_targets

FloatArray = NDArray[np.float64]

GRID_SEEDS = range(3)
NUM_ITER = 100
START_LR, END_LR = 1e-7, 10.0

Runs = dict[tuple[float, int], Record]  # by rate and seed


def fill_grid(task: Task, store: Store) -> None:
    """Trains at every rate with every seed, as far as the store lacks it.

    Rates above two at which every run ended with an infinite loss are left out.
    """
    measured = {run["seed"] for run in store.records(task, "start")}
    for seed in GRID_SEEDS:
        if seed not in measured:
            result = train.judge(task.make(seed))
            store.add(task, {"kind": "start", "seed": seed} | asdict(result))
    runs: Runs = {(run["rate"], run["seed"]): run for run in store.records(task, "run")}
    for rate in task.rates:
        for seed in GRID_SEEDS:
            if (rate, seed) not in runs:
                runs[rate, seed] = _run(task, seed, rate)
                store.add(task, runs[rate, seed])
        if is_complete(task, runs):
            return


def is_complete(task: Task, runs: Runs) -> bool:
    """Whether all rates have their runs, or all up to two that end with infinite losses alone."""
    failures = 0
    for rate in task.rates:
        losses = [runs[rate, seed]["valid_loss"] for seed in GRID_SEEDS if (rate, seed) in runs]
        if len(losses) < len(GRID_SEEDS):
            return False
        failures = failures + 1 if min(losses) == math.inf else 0
        if failures == 2:
            break
    return True


def _run(task: Task, seed: int, rate: float) -> Record:
    problem = task.make(seed)
    torch.manual_seed(seed)
    result = train.run(problem, task.make_optimizer, task.batch_size, seed, rate, task.steps)
    return {"kind": "run", "seed": seed, "rate": rate, "steps": task.steps} | asdict(result)


def fill_size(task: Task, store: Store) -> None:
    """Counts what there is to learn, if the store lacks it."""
    if not store.records(task, "size"):
        store.add(task, {"kind": "size"} | asdict(size_of(task)))


def fill_sweeps(task: Task, store: Store) -> None:
    """Runs the range tests, as far as the store lacks them."""
    present = {sweep["seed"] for sweep in store.records(task, "sweep")}
    for seed in range(task.sweeps):
        if seed not in present:
            store.add(task, _sweep(task, seed))


@dataclass(frozen=True)
class Size:
    """What there is to learn, and to learn from.

    Args:
        parameters: Trained parameters.
        batch_size: Rows in a batch.
        targets: Classes to predict in an epoch; None where numbers are predicted.
        weight_rms: Size of the trained parameters before the first step, with seed 0, as
            `lrfast.suggest.typical_rate` takes it.
    """

    parameters: int
    batch_size: int
    targets: int | None
    weight_rms: float


def size_of(task: Task) -> Size:
    """Returns the size of a task."""
    problem = task.make(0)
    weights = weight_stats(task.make_optimizer(problem.model.parameters(), 1.0))
    epoch = Epochs(problem.train, task.batch_size, 0)
    targets = len(epoch) * num_class_targets(next(iter(epoch)))
    return Size(weights.count, epoch.size, targets or None, weights.rms or 0.0)


class Epochs:
    """The batches of `train.batches` as a loader has them: every pass is an epoch."""

    def __init__(self, rows: Pair, batch_size: int, seed: int) -> None:
        self.size = min(batch_size, len(rows[0]))
        self._rows = len(rows[0])
        self._stream = train.batches(rows, batch_size, seed)

    def __len__(self) -> int:
        return self._rows // self.size

    def __iter__(self) -> Iterator[Pair]:
        yield from islice(self._stream, len(self))


def _sweep(task: Task, seed: int) -> Record:
    problem = task.make(seed)
    torch.manual_seed(seed)
    result = lrfast.lr_find(
        problem.model,
        task.make_optimizer(problem.model.parameters(), 1.0),
        Epochs(problem.train, task.batch_size, seed),
        problem.loss_fn,
        start_lr=START_LR,
        end_lr=END_LR,
        num_iter=NUM_ITER,
        progress=False,
    )
    return {
        "kind": "sweep",
        "seed": seed,
        "outcome": result.outcome,
        "lrs": result.lrs.tolist(),
        "losses": result.losses.tolist(),
        "smoothed": result.smoothed.tolist(),
        "suggestions": {name: found.lr for name, found in result.suggestions.items()},
    }


def context(task: Task, size: Size, amounts: DataSize) -> RatePrior:
    """Returns what `lrfast.lr_find` knows of a task of that size."""
    weights = WeightStats(
        size.parameters, torch.tensor(size.weight_rms * math.sqrt(size.parameters))
    )
    optimizer = task.make_optimizer([nn.Parameter(torch.zeros(1))], 1.0)
    return rate_prior(optimizer, 0, amounts, weights)


def suggestions_from_curve(
    lrs: FloatArray, losses: FloatArray, context: RatePrior
) -> dict[str, float | None]:
    """Returns the rate that each rule of lrfast reads off a raw curve, as `lrfast.lr_find` does.

    Args:
        lrs: Rates up to where the sweep of `NUM_ITER` points ended, [points].
        losses: Raw losses, [points].
        context: What is known besides.
    """
    curve = lrfast.LossCurve(len(losses))
    for loss in losses:
        curve.record(torch.tensor(loss))
    found = suggest_all(lrs, losses, curve.smoothed().numpy(), NUM_ITER, context)
    return {name: suggestion.lr for name, suggestion in found.items()}
