"""One training run each way, and the regrets of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import lrfast
from benchmarks import provenance
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.fresh import FRESH
from benchmarks.research.suggestions.held_out import HELD_OUT
from benchmarks.research.suggestions.regret import CAP
from benchmarks.research.suggestions.report import RESULTS as STUDY
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import END_LR, NUM_ITER, START_LR, Epochs, size_of
from benchmarks.research.suggestions.tasks import TASKS as FIRST
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.unseen import UNSEEN

STRIDE = 3  # every third task, in the study's order
SEEDS = range(2)
TASKS = (*FIRST, *HELD_OUT, *UNSEEN, *FRESH)[::STRIDE]


class Diverged(Exception):
    """A loss after the sweep is not finite."""


def in_warmup(task: Task, seed: int) -> dict[str, Any]:
    """Trains for the study's number of steps, the sweep included."""
    problem, size = task.make(seed), size_of(task)
    torch.manual_seed(seed)
    optimizer = task.make_optimizer(problem.model.parameters(), 1.0)
    search = lrfast.find_in_warmup(
        problem.model,
        optimizer,
        train.one_cycle(optimizer, train.STEPS),
        batch_size=size.batch_size,
        targets=size.targets,
    )
    stream = train.batches(problem.train, task.batch_size, seed)
    problem.model.train()
    result = None
    for _ in range(train.STEPS):
        inputs, targets = next(stream)
        optimizer.zero_grad()
        loss = problem.loss_fn(problem.model(inputs), targets)
        if search.result is not None and not math.isfinite(loss.item()):
            raise Diverged
        loss.backward()
        optimizer.step()
        result = search.observe(loss) or result
    assert result is not None and optimizer.schedule_step == train.STEPS
    return _record(train.judge(problem), optimizer.param_groups[0]["lr"], train.STEPS)


def separate(task: Task, seed: int, steps: int = train.STEPS) -> dict[str, Any]:
    """Runs the study's range test, and trains for so many steps at its suggestion."""
    problem = task.make(seed)
    torch.manual_seed(seed)
    optimizer = task.make_optimizer(problem.model.parameters(), 1.0)
    data = Epochs(problem.train, task.batch_size, seed)
    found = lrfast.lr_find(
        problem.model,
        optimizer,
        data,
        problem.loss_fn,
        start_lr=START_LR,
        end_lr=END_LR,
        num_iter=NUM_ITER,
        progress=False,
    )
    swept = len(found.lrs)
    lr = found.suggestion.lr
    if lr is None:
        raise Diverged
    optimizer = task.make_optimizer(problem.model.parameters(), lr)
    torch.manual_seed(seed)
    if not train.fit(problem, optimizer, task.batch_size, seed, steps):
        raise Diverged
    return _record(train.judge(problem), lr, steps + swept)


def within(task: Task, seed: int) -> dict[str, Any]:
    """Runs the separate range test, and trains for the steps that it leaves of the plan."""
    return separate(task, seed, train.STEPS - NUM_ITER)


WAYS: dict[str, Callable[[Task, int], dict[str, Any]]] = {
    "in the warm-up": in_warmup,
    "separate sweep": separate,
    "separate sweep, its steps counted": within,
}


def fill(folder: Path) -> Iterator[str]:
    """Trains what the store lacks, and yields the name of each run."""
    store = Store(folder)
    for task in TASKS:
        present = {(r["way"], r["seed"]) for r in store.records(task, "run")}
        for seed in SEEDS:
            for way, run in WAYS.items():
                if (way, seed) not in present:
                    try:
                        found = run(task, seed)
                    except Diverged:
                        found = {"loss": None, "lr": None, "steps": None}
                    store.add(task, {"kind": "run", "way": way, "seed": seed} | found)
                    yield f"{task.name}, {way}, {seed}"


def collect(folder: Path) -> dict[str, Any]:
    """Returns a result file of the tasks all of whose runs the store has."""
    store, study = Store(folder), provenance.newest(STUDY)
    grids = {n: t for p in ("tasks", "held_out", "unseen", "fresh") for n, t in study[p].items()}
    tasks = {}
    for task in TASKS:
        runs = store.records(task, "run")
        if len(runs) == len(SEEDS) * len(WAYS):
            tasks[task.name] = {
                "optimizer": task.optimizer.__name__,
                "best_rate": grids[task.name]["best_rate"],
                "runs": {
                    way: [
                        {name: run[name] for name in ("loss", "lr", "steps")}
                        for run in sorted(runs, key=lambda run: int(run["seed"]))
                        if run["way"] == way
                    ]
                    for way in WAYS
                },
            }
            for way in WAYS:
                losses = [run["loss"] for run in tasks[task.name]["runs"][way]]
                tasks[task.name].setdefault("regret", {})[way] = _regret(losses, grids[task.name])
    return provenance.facts() | {"steps": train.STEPS, "study": study["commit"], "tasks": tasks}


def _record(judged: train.Result, lr: float, steps: int) -> dict[str, Any]:
    loss = judged.valid_loss
    return {"loss": loss if math.isfinite(loss) else None, "lr": float(lr), "steps": steps}


def _regret(losses: list[float | None], grid: dict[str, Any]) -> float:
    """The study's regret: of the mean loss, at most the untrained model's, beyond the best."""
    untrained, best = grid["untrained"], min(grid["valid_losses"])
    mean = sum(untrained if x is None else min(x, untrained) for x in losses) / len(losses)
    return float(min((mean - best) / best, CAP))
