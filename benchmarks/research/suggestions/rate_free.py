"""Methods that need no learning rate, on the tasks: Prodigy, ScheduleFree-AdamW, D-Adaptation.

    pip install --no-deps prodigyopt==1.1.2 schedulefree==1.4.1 dadaptation==3.2

All take the steps of Adam, whatever the task's own optimizer is, with its weight decay. Each has
the settings that its authors advise: Prodigy and D-Adaptation a factor of 1 that falls as a cosine,
ScheduleFree its default learning rate, warm-up, and batch norm measured anew before it is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import GRID_SEEDS
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import Problem, Result

WARM_UP: Final = 12
REFRESHED: Final = 20  # batches that batch norm is measured on


def _prodigy(parameters: Iterable[nn.Parameter], weight_decay: float) -> Any:
    from prodigyopt import Prodigy

    settings: dict[str, Any] = {"use_bias_correction": True, "safeguard_warmup": True}
    return Prodigy(parameters, lr=1.0, weight_decay=weight_decay, decouple=True, **settings)


def _d_adaptation(parameters: Iterable[nn.Parameter], weight_decay: float) -> Any:
    from dadaptation import DAdaptAdam

    return DAdaptAdam(parameters, lr=1.0, weight_decay=weight_decay, decouple=True)


def _schedule_free(parameters: Iterable[nn.Parameter], weight_decay: float) -> Any:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(parameters, lr=2.5e-3, weight_decay=weight_decay, warmup_steps=WARM_UP)


METHODS: Final[Mapping[str, Callable[[Iterable[nn.Parameter], float], Any]]] = MappingProxyType(
    {
        "Prodigy": _prodigy,
        "ScheduleFree-AdamW": _schedule_free,
        "D-Adaptation": _d_adaptation,
    }
)


def fill_rate_free(task: Task, store: Store) -> None:
    """Trains with every method and seed, as far as the store lacks it."""
    present = {(run["method"], run["seed"]) for run in store.records(task, "rate-free")}
    for method in METHODS:
        for seed in GRID_SEEDS:
            if (method, seed) not in present:
                record = {"kind": "rate-free", "method": method, "seed": seed}
                store.add(task, record | asdict(_run(task, method, seed)))


def _run(task: Task, method: str, seed: int) -> Result:
    problem = task.make(seed)
    torch.manual_seed(seed)
    parameters = [each for each in problem.model.parameters() if each.requires_grad]
    optimizer = METHODS[method](parameters, _weight_decay(task))
    averages = hasattr(optimizer, "eval")
    if averages:
        optimizer.train()
    problem.model.train()
    stream = train.batches(problem.train, task.batch_size, seed)
    for step in range(train.STEPS):
        if not averages:
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * (1 + math.cos(math.pi * step / train.STEPS))
        if not train.update(problem, optimizer, next(stream)):
            return Result(math.inf, math.inf, None)
    if averages:
        optimizer.eval()
        _refresh(problem, task.batch_size, seed)
    return train.judge(problem)


def _weight_decay(task: Task) -> float:
    defaults = task.make_optimizer([nn.Parameter(torch.zeros(1))], 1.0).defaults
    return float(defaults.get("weight_decay", 0.0))


def _refresh(problem: Problem, batch_size: int, seed: int) -> None:
    """Measures what batch norm knows of activations anew, with the averaged weights."""
    stream = train.batches(problem.train, batch_size, seed)
    with torch.no_grad():
        for _ in range(REFRESHED):
            problem.model(next(stream)[0])
