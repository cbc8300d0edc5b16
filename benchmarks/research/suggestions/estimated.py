"""`Retest.estimate` half way through trainings at peaks that are right, too low and too high."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.regret import Landscape
from benchmarks.research.suggestions.store import Record, Store
from benchmarks.research.suggestions.tasks import Task

FACTORS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the peak over the best one of the grid
STEPS: Final = train.STEPS // 2
SEED: Final = 0
WAYS: Final = ("kept", "estimate", "range test", "both", "prior alone")


def fill_estimates(landscape: Landscape, store: Store) -> None:
    """Trains as far as the store lacks it, and asks for an estimate and for a range test."""
    task = landscape.task
    present = {record["factor"] for record in store.records(task, "estimate")}
    for factor in FACTORS:
        if factor not in present:
            store.add(task, _estimate(task, landscape.best_rate * factor) | {"factor": factor})


def estimates(
    landscape: Landscape, store: Store, kept: Sequence[Record]
) -> tuple[Sequence[Record], dict[str, dict[str, float]]]:
    """Returns what was measured, and by factor the regrets of keeping, asking and testing."""
    names = ("factor", "peak", "estimate", "retest", "outcome")
    found = [
        {name: record[name] for name in names}
        for record in store.records(landscape.task, "estimate")
    ] or kept
    return found, {f"{record['factor']:g}": _regrets(landscape, record) for record in found}


def _regrets(landscape: Landscape, record: Record) -> dict[str, float]:
    """What each way to go on from there costs."""
    estimate = record["estimate"] or record["peak"]
    both = estimate if record["outcome"] == "declined" else record["retest"]
    prior = landscape.sweeps[0].context.usual
    lrs = (record["peak"], estimate, record["retest"], both, prior or record["peak"])
    regrets = {way: landscape.regret(lr) for way, lr in zip(WAYS, lrs, strict=True)}
    return regrets | {"estimated": float(record["estimate"] is not None)}


def _estimate(task: Task, peak: float) -> Record:
    problem = task.make(SEED)
    torch.manual_seed(SEED)
    optimizer = task.make_optimizer(problem.model.parameters(), peak)
    optimizer.set_schedule(train.one_cycle(optimizer, train.STEPS))
    problem.model.train()
    curve = lrfast.LossCurve(STEPS)
    data = TensorDataset(*problem.train)
    size = min(task.batch_size, len(data))
    loader = DataLoader(data, batch_size=size, shuffle=True, drop_last=True)
    parts = (problem.model, optimizer, loader, problem.loss_fn)
    alone = lrfast.Retest(*parts, budget=None, progress=False)
    asked = lrfast.Retest(*parts, curve=curve)
    stream = train.batches(problem.train, task.batch_size, SEED)
    for _ in range(STEPS):
        inputs, targets = next(stream)
        optimizer.zero_grad()
        loss = problem.loss_fn(problem.model(inputs), targets)
        loss.backward()
        optimizer.step()
        curve.record(loss, optimizer.last_rates[:1])
        if not math.isfinite(loss.item()):
            break
    found, tested = asked.estimate().lr, alone.unfrozen()
    # As `Retest` does by default: small changes are left out, and large ones limited.
    estimate = None if found is None or found > peak / 1.5 else max(found, peak / 10)
    return {
        "kind": "estimate",
        "peak": peak,
        "estimate": estimate,
        "retest": tested.new[0],
        "outcome": tested.outcome,
    }


def estimate_rows(tasks: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of a table: means over the tasks, by factor."""
    rows = []
    for factor in FACTORS:
        name = f"{factor:g}"
        found = [task["estimates"][name] for task in tasks.values() if name in task["estimates"]]
        if found:
            means = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
            regrets = [f"{means[key]:.2f}" for key in WAYS]
            rows.append([name, str(len(found)), f"{100 * means['estimated']:.0f} %", *regrets])
    return rows
