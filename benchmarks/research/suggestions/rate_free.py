"""Optimizers whose learning rate is the same everywhere, or estimated while they train.

    pip install --no-deps prodigyopt==1.1.2 schedulefree==1.4.1 dadaptation==3.2

They take the place of the task's own optimizer, and have its weight decay. Each has the settings
that its authors advise: Prodigy and D-Adaptation a factor of 1 that falls as a cosine, ScheduleFree
its default learning rate, warm-up, and batch norm measured anew before it is judged; Muon 0.02 for
hidden matrices and 3e-4 for all else, which AdamW trains, falling as a cosine. Prodigy and Muon are
there without the cosine, too; ScheduleFree has none by its definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import GRID_SEEDS
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import Problem, Result

WARM_UP: Final = 12
REFRESHED: Final = 20  # batches that batch norm is measured on


@dataclass(frozen=True)
class Method:
    """An optimizer at the settings that it has for all tasks.

    Args:
        make: Builds it for a model, with a weight decay.
        falls: Whether its learning rates fall as a cosine.
    """

    make: Callable[[nn.Module, float], Any]
    falls: bool = True


def _prodigy(model: nn.Module, weight_decay: float) -> Any:
    from prodigyopt import Prodigy

    settings: dict[str, Any] = {"use_bias_correction": True, "safeguard_warmup": True}
    return Prodigy(_trained(model), lr=1.0, weight_decay=weight_decay, decouple=True, **settings)


def _d_adaptation(model: nn.Module, weight_decay: float) -> Any:
    from dadaptation import DAdaptAdam

    return DAdaptAdam(_trained(model), lr=1.0, weight_decay=weight_decay, decouple=True)


def _schedule_free(model: nn.Module, weight_decay: float) -> Any:
    from schedulefree import AdamWScheduleFree

    settings: dict[str, Any] = {"weight_decay": weight_decay, "warmup_steps": WARM_UP}
    return AdamWScheduleFree(_trained(model), lr=2.5e-3, **settings)


def _muon(model: nn.Module, weight_decay: float) -> Any:
    groups = lrfast.muon_groups(model, lr=0.02, adamw_lr=3e-4)
    return lrfast.Muon(groups, weight_decay=weight_decay)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "Prodigy": Method(_prodigy),
        "Prodigy, no schedule": Method(_prodigy, falls=False),
        "ScheduleFree-AdamW": Method(_schedule_free, falls=False),
        "D-Adaptation": Method(_d_adaptation),
        "Muon with AdamW": Method(_muon),
        "Muon with AdamW, no schedule": Method(_muon, falls=False),
    }
)


def fill_rate_free(task: Task, store: Store) -> None:
    """Trains with every method and seed, as far as the store lacks it.

    A method that has no use for a task's model, as Muon without hidden matrices, leaves none.
    """
    present = {(run["method"], run["seed"]) for run in store.records(task, "rate-free")}
    for name, method in METHODS.items():
        for seed in GRID_SEEDS:
            if (name, seed) not in present and (found := _run(task, method, seed)) is not None:
                record = {"kind": "rate-free", "method": name, "seed": seed}
                store.add(task, record | asdict(found))


def _run(task: Task, method: Method, seed: int) -> Result | None:
    problem = task.make(seed)
    torch.manual_seed(seed)
    try:
        optimizer = method.make(problem.model, _weight_decay(task))
    except ValueError:
        return None
    averages = hasattr(optimizer, "eval")
    if averages:
        optimizer.train()
    problem.model.train()
    peaks = [group["lr"] for group in optimizer.param_groups]
    stream = train.batches(problem.train, task.batch_size, seed)
    for step in range(train.STEPS):
        if method.falls:
            factor = 0.5 * (1 + math.cos(math.pi * step / train.STEPS))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
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
