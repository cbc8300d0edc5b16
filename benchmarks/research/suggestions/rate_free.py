"""Optimizers whose learning rate is the same everywhere, or estimated while they train.

    pip install --no-deps prodigyopt==1.1.2 schedulefree==1.4.1 dadaptation==3.2

They take the place of the task's own optimizer, and have its weight decay. Each has the settings
that its authors advise: Prodigy and D-Adaptation a factor of 1 that falls as a cosine, ScheduleFree
its default learning rate, warm-up, and batch norm measured anew before it is judged; Muon 0.02 for
hidden matrices and 3e-4 for all else, which AdamW trains, falling as a cosine. Prodigy and Muon are
there without the cosine, too; ScheduleFree has none by its definition.

ScheduleFree+ (arXiv 2605.19095) is its authors' reference, which no package has: the environment
variable `SCHEDULE_FREE_PLUS` must be the path of the file that `PLUS_SOURCE` names. It has its
defaults, among them no weight decay, because its decay is multiplied by the square of the learning
rate. With a warm-up its average begins after twice as many steps, as its authors advise.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

import lrfast
from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import GRID_SEEDS
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import Problem, Result

WARM_UP: Final = 12
REFRESHED: Final = 20  # batches that batch norm is measured on

PLUS: Final = "SCHEDULE_FREE_PLUS"
PLUS_BLOB: Final = "6d4e4639e71a555b05d85e7778fc24fbff3ea09e"
PLUS_SOURCE: Final = (
    "https://github.com/facebookresearch/schedule_free/blob/"
    "70785b53e778d0e872c0bbb75ff4ee54ee10c291/schedulefree/adamc_schedulefree_plus_paper.py"
)


@dataclass(frozen=True)
class Method:
    """An optimizer at the settings that it has for all tasks.

    Args:
        make: Builds it for a model, with a weight decay.
        falls: Whether its learning rates fall as a cosine.
        warm_up: Steps in which its learning rates rise to their values, beside its own warm-up.
    """

    make: Callable[[nn.Module, float], Any]
    falls: bool = True
    warm_up: int = 0

    def factor(self, step: int) -> float:
        """Returns what the learning rates of a step are multiplied by."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / train.STEPS)) if self.falls else 1.0
        return cosine * min((step + 1) / max(self.warm_up, 1), 1.0)


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


def _schedule_free_plus(model: nn.Module, weight_decay: float, c_warmup: int = 0) -> Any:
    return reference()["AdamCScheduleFreePlusPaper"](_trained(model), c_warmup=c_warmup)


def reference() -> dict[str, Any]:
    """Returns what the reference of ScheduleFree+ defines.

    Raises:
        ImportError: The file is not there, or another version.
    """
    path = os.environ.get(PLUS, "")
    code = Path(path).read_bytes() if Path(path).is_file() else b""
    if hashlib.sha1(b"blob %d\0" % len(code) + code).hexdigest() != PLUS_BLOB:
        raise ImportError(
            f"the environment variable {PLUS} must be the path of {PLUS_SOURCE}, got {path!r}"
        )
    names: dict[str, Any] = {}
    exec(compile(code, path, "exec"), names)
    return names


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
        "ScheduleFree+": Method(_schedule_free_plus, falls=False),
        "ScheduleFree+, warm-up": Method(
            partial(_schedule_free_plus, c_warmup=2 * WARM_UP), falls=False, warm_up=WARM_UP
        ),
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
    trained = _told(problem, optimizer) if hasattr(optimizer, "step_func") else problem
    peaks = [group["lr"] for group in optimizer.param_groups]
    stream = train.batches(problem.train, task.batch_size, seed)
    for step in range(train.STEPS):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * method.factor(step)
        try:
            goes_on = train.update(trained, optimizer, next(stream))
        except ZeroDivisionError:  # the reference of ScheduleFree+, where all gradients are 0
            goes_on = False
        if not goes_on:
            return Result(math.inf, math.inf, None)
    if averages:
        optimizer.eval()
        _refresh(problem, task.batch_size, seed)
    return train.judge(problem)


def _told(problem: Problem, optimizer: Any) -> Problem:
    """The problem with each of its losses handed to the step of the optimizer that follows."""

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = problem.loss_fn(outputs, targets)
        optimizer.step = partial(optimizer.step_func, loss.item())
        return loss

    return replace(problem, loss_fn=loss_fn)


def _weight_decay(task: Task) -> float:
    defaults = task.make_optimizer([nn.Parameter(torch.zeros(1))], 1.0).defaults
    return float(defaults.get("weight_decay", 0.0))


def _refresh(problem: Problem, batch_size: int, seed: int) -> None:
    """Measures what batch norm knows of activations anew, with the averaged weights."""
    stream = train.batches(problem.train, batch_size, seed)
    with torch.no_grad():
        for _ in range(REFRESHED):
            problem.model(next(stream)[0])
