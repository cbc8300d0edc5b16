"""Fills the store: first over the grid of rates, then with other seeds at the best rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import lrfast
from benchmarks.research.claims.experiments import EXPERIMENTS, FIRST_RATES, Experiment
from benchmarks.research.claims.sides import Side
from benchmarks.research.suggestions import store, train
from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import Result

FIRST_JUDGE = 10  # the first of the seeds that judge; those that choose come before


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        choosing: Seeds with which each side's rate is chosen.
        judging: Other seeds, with which it is judged at that rate.
        growths: How often the grid may grow by a rate at each of its ends.
        shrink: What steps are divided by, for tests.
    """

    choosing: tuple[int, ...] = (0, 1, 2)
    judging: tuple[int, ...] = tuple(range(FIRST_JUDGE, FIRST_JUDGE + 8))
    growths: int = 4
    shrink: int = 1

    @classmethod
    def of(cls, choosing: int, judging: int) -> Plan:
        """Returns the plan with so many seeds, of which none both chooses and judges."""
        if not (1 <= choosing <= FIRST_JUDGE and judging >= 2):
            raise ValueError(
                f"seeds must be 1 to {FIRST_JUDGE} that choose and 2 or more that judge, got "
                f"{choosing} and {judging}"
            )
        return cls(tuple(range(choosing)), tuple(range(FIRST_JUDGE, FIRST_JUDGE + judging)))


QUICK = Plan(choosing=(0,), judging=(10, 11), growths=0, shrink=28)


@dataclass(frozen=True)
class Trial:
    """A side on a task, by a plan: what the store keeps a file of."""

    task: Task
    side: Side
    plan: Plan
    experiment: str

    @property
    def name(self) -> str:
        side = self.side.name.replace(" / ", "-over-").replace(" ", "-").replace(",", "")
        return f"{self.experiment}-{self.task.name}-{side}"

    @property
    def steps(self) -> int:
        return self.side.steps // self.plan.shrink


def fingerprint(trial: Trial) -> str:
    """Returns a hash of all that the trial runs through in these packages."""
    task, side = trial.task, trial.side
    parts = [task.optimizer.__name__, repr(sorted(task.options.items())), repr(task.batch_size)]
    parts += [repr(trial.steps), repr(side.is_gradual)]
    return store.hashed((task.make, side.schedule, side.rates, Side, run, train.judge), parts)


def run(trial: Trial, seed: int, rate: float) -> Result:
    """Trains at a rate and judges what came of it."""
    task, side = trial.task, trial.side
    problem = task.make(seed)
    torch.manual_seed(seed)
    groups = lrfast.discriminative(problem.model, side.rates(rate))
    optimizer = task.optimizer(groups, **task.options)
    optimizer.set_schedule(side.schedule(optimizer, trial.steps))
    timetable = side.timetable(lrfast.groups.layer_count(optimizer), trial.steps)
    problem.model.train()
    stream = train.batches(problem.train, task.batch_size, seed)
    for step in range(trial.steps):
        timetable.apply(optimizer, step)
        if not train.update(problem, optimizer, next(stream)):
            return Result(math.inf, math.inf, None)
    return train.judge(problem)


def measure_named(experiment: str, task: str, folder: Path, plan: Plan) -> Record:
    """Does it in a process of its own, on one thread: tasks themselves do not get there."""
    torch.set_num_threads(1)
    found = next(each for each in EXPERIMENTS if each.name == experiment)
    return measure(found, next(each for each in found.tasks if each.name == task), folder, plan)


def measure(experiment: Experiment, task: Task, folder: Path, plan: Plan) -> Record:
    """Measures what the store lacks of a task; returns what the result file holds of it.

    All sides get the same rates. Losses are at most the untrained model's of that seed.
    """
    trials = [Trial(task, side, plan, experiment.name) for side in experiment.sides]
    kept = Store(folder, fingerprint)
    starts = _untrained(trials[0], kept)
    untrained = {seed: start["valid_loss"] for seed, start in starts.items()}
    powers = list(FIRST_RATES[task.optimizer.__name__])
    least, most = powers[0] - plan.growths, powers[-1] + plan.growths
    while True:
        grids = [_capped(_fill(trial, kept, plan.choosing, powers), untrained) for trial in trials]
        best = [int(np.argmin(grid.mean(1))) for grid in grids]
        below = [powers[0] - 1] if 0 in best and powers[0] > least else []
        above = [powers[-1] + 1] if len(powers) - 1 in best and powers[-1] < most else []
        if not below and not above:
            break
        powers = [*below, *powers, *above]
    return {
        "optimizer": task.optimizer.__name__,
        "batch_size": task.batch_size,
        "tags": list(task.tags),
        "untrained": float(np.mean([untrained[seed] for seed in plan.judging])),
        "untrained_accuracy": _accuracy([starts[seed] for seed in plan.judging]),
        "rates": [_rate(power) for power in powers],
        "sides": {
            trial.side.name: _judged(trial, kept, grid, powers[index], untrained)
            for trial, grid, index in zip(trials, grids, best, strict=True)
        },
    }


def _judged(
    trial: Trial, kept: Store, grid: np.ndarray, power: int, untrained: dict[int, float]
) -> Record:
    runs = _fill(trial, kept, trial.plan.judging, [power])
    accuracies = [run["valid_accuracy"] for run in runs]
    return {
        "steps": trial.steps,
        "grid_losses": grid.tolist(),  # [rates, seeds]
        "best_rate": _rate(power),
        "losses": _capped(runs, untrained)[0].tolist(),
        "accuracies": None if None in accuracies else accuracies,
    }


def _untrained(trial: Trial, kept: Store) -> dict[int, Record]:
    """Returns how the models are judged before any side trains them, by seed."""
    starts = {start["seed"]: start for start in kept.records(trial, "start")}
    for seed in (*trial.plan.choosing, *trial.plan.judging):
        if seed not in starts:
            result = asdict(train.judge(trial.task.make(seed)))
            starts[seed] = {"kind": "start", "seed": seed} | result
            kept.add(trial, starts[seed])
    return starts


def _accuracy(starts: list[Record]) -> float | None:
    accuracies = [start["valid_accuracy"] for start in starts]
    return None if None in accuracies else float(np.mean(accuracies))


def _fill(trial: Trial, kept: Store, seeds: Iterable[int], powers: list[int]) -> list[Record]:
    """Returns the runs of all rates with all seeds, seeds fastest; makes those that are missing."""
    runs = {(run["power"], run["seed"]): run for run in kept.records(trial, "run")}
    for power in powers:
        for seed in seeds:
            if (power, seed) not in runs:
                result = asdict(run(trial, seed, _rate(power)))
                runs[power, seed] = {"kind": "run", "power": power, "seed": seed} | result
                kept.add(trial, runs[power, seed])
    return [runs[power, seed] for power in powers for seed in seeds]


def _capped(runs: list[Record], untrained: dict[int, float]) -> np.ndarray:
    """Returns the losses, [rates, seeds]."""
    losses = [min(run["valid_loss"], untrained[run["seed"]]) for run in runs]
    return np.array(losses).reshape(-1, len({run["seed"] for run in runs}))


def _rate(power: int) -> float:
    return float(10 ** (power / 2))
