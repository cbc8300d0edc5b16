"""Races, `lr_find(verify=...)`: their learning rates, how well one trains with them, their cost.

A race is judged by validation data, by training batches that it holds back, or within a time. It
takes its data from a DataLoader that shuffles, and may favour a learning rate by chance: three
races per task, and three trainings with what each answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.regret import CAP, Landscape
from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.sweeps import END_LR, GRID_SEEDS, NUM_ITER, START_LR
from benchmarks.research.suggestions.tasks import Task

SEEDS = range(3)
# Of a race's data: its batches come in another order than those of the runs that judge it.
OTHER_SEEDS = 500
JUDGED: Final = "race, validation data"
ALONE: Final = "race, training data alone"
TIMED: Final = "race within a time"
METHODS: Final[Mapping[str, range]] = MappingProxyType(
    {JUDGED: SEEDS, ALONE: SEEDS, TIMED: range(1)}
)
_SHARE: Final = 0.5  # of the time of a race without a limit


def fill_verified(task: Task, store: Store) -> None:
    """Runs the races that the store lacks, and trains with what they answer."""
    runs: dict[float, list[float]] = {}  # of learning rates that several races answer
    for method, seeds in METHODS.items():
        races = {race["seed"]: race for race in store.records(task, method)}
        for seed in seeds:
            if seed not in races:
                store.add(task, _race(task, method, seed, store, runs))


def verdicts(
    landscape: Landscape, store: Store, kept: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns what came of a task's races, by method; of those that were measured."""
    found = dict(kept)
    for method, seeds in METHODS.items():
        races = store.records(landscape.task, method)
        if len(races) == len(seeds):
            names = ("rate", "runs", "candidates", "updates", "counted", "seconds", "limit")
            found[method] = {name: [race[name] for race in races] for name in names}
    return found


def judged(landscape: Landscape, races: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the verdict on races, as on other methods."""
    # Not race by race, where the noise of the runs would count upwards alone.
    losses = float(np.mean([_loss(landscape, runs) for runs in races["runs"]]))
    beyond = max(losses - landscape.best, 0.0)
    return {
        "regret": min(beyond / landscape.best, CAP),
        "share": beyond / (landscape.grid.untrained - landscape.best),
        "rates": list(races["rate"]),
    }


def _loss(landscape: Landscape, runs: Sequence[float]) -> float:
    """The mean loss of the runs, none above that of the untrained model; without runs the worst."""
    if not runs:
        return landscape.loss(None)
    return float(np.minimum(runs, landscape.grid.untrained).mean())


def _race(
    task: Task, method: str, seed: int, store: Store, runs: dict[float, list[float]]
) -> Record:
    problem, made = task.make(seed), 0

    def counted(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal made
        made += torch.is_grad_enabled()
        return problem.loss_fn(outputs, targets)

    limit = None
    if method == TIMED:
        limit = _SHARE * store.records(task, JUDGED)[0]["seconds"]
    torch.manual_seed(OTHER_SEEDS + seed)
    found = lrfast.lr_find(
        problem.model,
        task.make_optimizer(problem.model.parameters(), 1.0),
        _loader(problem, task.batch_size),
        counted,
        start_lr=START_LR,
        end_lr=END_LR,
        num_iter=NUM_ITER,
        verify=train.STEPS,
        budget=None if limit is None else timedelta(seconds=limit),
        judge=None if method == ALONE else [tuple(r[: train.EVALUATED] for r in problem.valid)],
        progress=False,
    )
    rate, race = found.suggestion.lr, found.race
    if rate is not None and rate not in runs:
        runs[rate] = [_run(task, run_seed, rate) for run_seed in GRID_SEEDS]
    return {
        "kind": method,
        "seed": seed,
        "rate": rate,
        "first": found.suggestions["auto"].lr,
        "candidates": 0 if race is None else len(race.candidates),
        "updates": 0 if race is None else race.updates,
        "counted": made - len(found.lrs),
        "seconds": 0.0 if race is None else race.seconds,
        "limit": limit,
        "runs": [] if rate is None else runs[rate],
    }


def _loader(problem: train.Problem, batch_size: int) -> DataLoader[Any]:
    """Batches as of `train.batches`, cut out whole: to collate rows takes longer than to train."""
    data = TensorDataset(*problem.train)
    size = min(batch_size, len(data))
    return DataLoader(data, sampler=BatchSampler(RandomSampler(data), size, True), batch_size=None)


def _run(task: Task, seed: int, rate: float) -> float:
    problem = task.make(seed)
    torch.manual_seed(seed)
    return train.run(problem, task.make_optimizer, task.batch_size, seed, rate).valid_loss
