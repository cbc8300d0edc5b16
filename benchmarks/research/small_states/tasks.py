"""Tasks of the suggestions study with states in 8 bits, at their best learning rates.

All runs of a seed have the same weights and batches. A third side has float32 states and weights
that differ by a part in a million: what it changes is the task's own sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch

from benchmarks.research.intervals import t_interval
from benchmarks.research.suggestions.measure import ALL
from benchmarks.research.suggestions.report import RESULTS as LANDSCAPES
from benchmarks.research.suggestions.report import newest
from benchmarks.research.suggestions.store import Store, hashed
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import STEPS, Problem, batches, fit, judge, update

SEEDS: Final = 20
FLOAT32, CODED, NUDGED = "float32", "8bit", "float32, nudged"
SIDES: Final = (FLOAT32, CODED, NUDGED)
NUDGE: Final = 1e-6
MARGIN: Final = 0.02
CONFIDENCE: Final = 0.9  # of the interval whose ends are two one-sided tests at 95 %

UNCODED: Final = "no tensor of 4096 elements"
STATELESS: Final = "an optimizer without states"
REFUSED: Final = "an optimizer that refuses 8 bits"


def fingerprint(task: Task) -> str:
    """Returns a hash of all that the task and its runs go through."""
    parts = [task.optimizer.__name__, repr(sorted(task.options.items())), repr(task.batch_size)]
    return hashed((task.make, _run, _optimizer), parts)


def left_out(task: Task) -> str | None:
    """Returns why 8 bits change nothing in a task, or cannot be had; None for others."""
    problem = task.make(0)
    try:
        optimizer = _optimizer(task, problem, 0.0, 0, CODED)
    except ValueError:
        return REFUSED
    update(problem, optimizer, next(batches(problem.train, task.batch_size, 0)))
    names = {name for state in optimizer.state_dict()["state"].values() for name in state}
    if any(name.endswith("_codes") for name in names):
        return None
    return UNCODED if names - {"step"} else STATELESS


def best_rate(name: str, landscapes: dict[str, Any]) -> float:
    """Returns the peak learning rate with the lowest validation loss."""
    parts = (part for part in landscapes.values() if isinstance(part, dict))
    found = next(part[name] for part in parts if "valid_losses" in part.get(name, {}))
    rate: float = found["rates"][int(np.argmin(found["valid_losses"]))]
    return rate


def fill(task: Task, store: Store) -> None:
    """Trains every side with every seed, as far as the store lacks it."""
    if not store.records(task, "left out"):
        store.add(task, {"kind": "left out", "why": left_out(task)})
    if store.records(task, "left out")[0]["why"]:
        return
    rate = best_rate(task.name, newest(LANDSCAPES))
    present = {(run["side"], run["seed"]) for run in store.records(task, "states")}
    for seed in range(SEEDS):
        for side in SIDES:
            if (side, seed) not in present:
                record = {"kind": "states", "side": side, "seed": seed, "rate": rate}
                store.add(task, record | _run(task, rate, seed, side))


def _run(task: Task, rate: float, seed: int, side: str) -> dict[str, Any]:
    """Returns the validation loss after a training, and the bytes of state for each parameter."""
    torch.manual_seed(seed)
    problem = task.make(seed)
    if side == NUDGED:
        nudge(problem.model.parameters())
    return outcome(task, problem, _optimizer(task, problem, rate, seed, side), seed)


def outcome(task: Task, problem: Problem, optimizer: Any, seed: int) -> dict[str, Any]:
    """Trains, and returns the validation loss and the bytes of state for each parameter."""
    torch.manual_seed(seed)
    finite = fit(problem, optimizer, task.batch_size, seed, STEPS)
    memory = optimizer.memory()
    loss = judge(problem).valid_loss if finite else math.inf
    return {
        "valid_loss": loss if math.isfinite(loss) else None,
        "bytes": memory.states / memory.numel,
    }


def _optimizer(task: Task, problem: Problem, rate: float, seed: int, side: str) -> Any:
    state_dtype = "8bit" if side == CODED else None
    options = {**task.options, "state_dtype": state_dtype, "seed": seed}
    parameters = [each for each in problem.model.parameters() if each.requires_grad]
    return task.optimizer(parameters, lr=rate, **options)


@torch.no_grad()
def nudge(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Changes every weight by about a part in a million of itself."""
    draw = torch.Generator().manual_seed(0)
    for each in parameters:
        each.mul_(1 + NUDGE * torch.randn(each.shape, generator=draw).to(each.dtype))


def entries(store: Store) -> dict[str, Any]:
    """Returns what a result file holds of each task that is complete, by its name."""
    found = {name: _entry(task, store) for name, task in ALL.items()}
    return {name: entry for name, entry in found.items() if entry}


def _entry(task: Task, store: Store) -> dict[str, Any]:
    why = [record["why"] for record in store.records(task, "left out")]
    if not why or why[0]:
        return {"left_out": why[0]} if why else {}
    runs = {(run["side"], run["seed"]): run for run in store.records(task, "states")}
    if len(runs) < len(SIDES) * SEEDS:
        return {}
    sides = {side: [runs[side, seed]["valid_loss"] for seed in range(SEEDS)] for side in SIDES}
    return {
        "rate": runs[CODED, 0]["rate"],
        "bytes": runs[CODED, 0]["bytes"],
        "losses": sides,
        "ratios": {side: ratio(sides[side], sides[FLOAT32]) for side in (CODED, NUDGED)},
    }


def ratio(
    losses: Sequence[float | None], others: Sequence[float | None]
) -> tuple[float, float, float] | None:
    """Returns the mean of the losses over the others, by seed, and the ends of its interval.

    None if a training had no finite loss.
    """
    logs = []
    for loss, other in zip(losses, others, strict=True):
        if loss is None or other is None:
            return None
        logs.append(math.log(loss / other))
    middle, low, high = (math.exp(each) for each in t_interval(logs, CONFIDENCE))
    return middle, low, high


def verdict(found: tuple[float, float, float] | None) -> str:
    """Returns what an interval says: equal within the margin, no worse, worse, or undecided."""
    if found is None:
        return "worse"
    _, low, high = found
    if high <= 1 + MARGIN:
        return "equal" if low >= 1 - MARGIN else "no worse"
    return "worse" if low > 1 else "undecided"
