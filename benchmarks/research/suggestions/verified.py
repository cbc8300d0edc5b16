"""What `lr_find(verify=...)` answers, and how well one trains with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.regret import CAP, Landscape
from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.sweeps import END_LR, GRID_SEEDS, NUM_ITER, START_LR
from benchmarks.research.suggestions.tasks import Task

SEEDS = range(3)
# Of the race's data: its batches come in another order than those of the runs that judge it.
OTHER_SEEDS = 500


def fill_verified(task: Task, store: Store) -> None:
    """Runs the races that the store lacks, and trains with what they answer."""
    present = {race["seed"] for race in store.records(task, "race")}
    for seed in SEEDS:
        if seed not in present:
            store.add(task, _race(task, seed))


def verdicts(landscapes: Sequence[Landscape], store: Store) -> dict[str, dict[str, Any]]:
    """Returns what came of the races, by task; those that the store lacks are left out."""
    found = {}
    for landscape in landscapes:
        races = store.records(landscape.task, "race")
        if len(races) == len(SEEDS):
            found[landscape.task.name] = {
                "first": [race["first"] for race in races],
                "rates": [race["rate"] for race in races],
                "runs": [len(race["candidates"]) for race in races],
                "first_regret": float(np.mean([landscape.regret(race["first"]) for race in races])),
                # Not race by race, where the noise of the runs would count upwards alone.
                "regret": max(float(np.mean([_regret(landscape, race) for race in races])), 0.0),
            }
    return found


def _regret(landscape: Landscape, race: Record) -> float:
    """The regret of a rate that was trained with; negative where it beats the grid's best."""
    if race["rate"] is None:
        return landscape.regret(None)
    losses = np.minimum(race["runs"], landscape.grid.untrained)
    return min(float(losses.mean() - landscape.best) / landscape.best, CAP)


def _race(task: Task, seed: int) -> Record:
    problem = task.make(seed)
    torch.manual_seed(OTHER_SEEDS + seed)
    stream = train.batches(problem.train, task.batch_size, OTHER_SEEDS + seed)
    found = lrfast.lr_find(
        problem.model,
        task.make_optimizer(problem.model.parameters(), 1.0),
        list(islice(stream, max(train.STEPS, NUM_ITER))),
        problem.loss_fn,
        start_lr=START_LR,
        end_lr=END_LR,
        num_iter=NUM_ITER,
        verify=train.STEPS,
        judge=[tuple(rows[: train.EVALUATED] for rows in problem.valid)],
        progress=False,
    )
    rate = found.suggestion.lr
    candidates = [] if found.race is None else [asdict(c) for c in found.race.candidates]
    return {
        "kind": "race",
        "seed": seed,
        "rate": rate,
        "first": found.suggestions["auto"].lr,
        "candidates": candidates,
        "runs": [] if rate is None else [_run(task, run_seed, rate) for run_seed in GRID_SEEDS],
    }


def _run(task: Task, seed: int, rate: float) -> float:
    problem = task.make(seed)
    torch.manual_seed(seed)
    return train.run(problem, task.make_optimizer, task.batch_size, seed, rate).valid_loss
