"""One training run at one peak rate, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfast
from benchmarks.research.suggestions.data import Pair
from lrfast import schedules

STEPS = 240
EVALUATED = 1000  # rows at most that a mean loss is taken over

Loss = Callable[[Tensor, Tensor], Tensor]
Optimizer = (
    lrfast.SGD
    | lrfast.Adam
    | lrfast.AdamW
    | lrfast.NAdam
    | lrfast.RMSprop
    | lrfast.Adagrad
    | lrfast.Lion
)
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], Optimizer]


@dataclass(frozen=True)
class Problem:
    """A model, what it learns from, and what it is judged on.

    It is judged by the loss that it learns from, unless ``judged_by`` is another, which is above 0.
    """

    model: nn.Module
    train: Pair
    valid: Pair
    loss_fn: Loss
    judged_by: Loss | None = None


@dataclass(frozen=True)
class Result:
    """Mean losses in eval mode, infinite if a loss was not finite, and the share of right answers.

    ``valid_accuracy`` is None where the targets are numbers.
    """

    train_loss: float
    valid_loss: float
    valid_accuracy: float | None


def batches(rows: Pair, batch_size: int, seed: int) -> Iterator[Pair]:
    """Yields batches without end, shuffled anew every epoch; what is left of an epoch is dropped.

    Where there are fewer rows than ``batch_size``, a batch has all of them.
    """
    inputs, targets = rows
    size = min(batch_size, len(inputs))
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(inputs), generator=draw)
        for start in range(0, len(inputs) - size + 1, size):
            chosen = order[start : start + size]
            yield inputs[chosen], targets[chosen]


def fit(problem: Problem, optimizer: Optimizer, batch_size: int, seed: int, steps: int) -> bool:
    """Trains with the one-cycle policy; returns False as soon as a loss is not finite."""
    optimizer.set_schedule(one_cycle(optimizer, steps))
    problem.model.train()
    stream = batches(problem.train, batch_size, seed)
    return all(update(problem, optimizer, next(stream)) for _ in range(steps))


def update(problem: Problem, optimizer: Optimizer, batch: Pair) -> bool:
    """Trains on a batch; returns False and changes nothing if the loss is not finite."""
    inputs, targets = batch
    optimizer.zero_grad()
    loss = problem.loss_fn(problem.model(inputs), targets)
    if not math.isfinite(loss.item()):
        return False
    loss.backward()
    optimizer.step()
    return True


def one_cycle(optimizer: Optimizer, steps: int) -> schedules.Schedule:
    """The one-cycle policy, which cycles momentum only where there is some.

    To switch it on for an optimizer without would train another one than the range test saw.
    """
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
    return schedules.one_cycle(steps, momentum=(0.95, 0.85) if has_momentum else None)


def judge(problem: Problem) -> Result:
    """Returns the losses of the model as it is."""
    problem.model.eval()
    with torch.no_grad():
        train_loss, _ = _mean_loss(problem, problem.train)
        valid_loss, accuracy = _mean_loss(problem, problem.valid)
    return Result(train_loss, valid_loss, accuracy)


def _mean_loss(problem: Problem, rows: Pair) -> tuple[float, float | None]:
    inputs, targets = rows[0][:EVALUATED], rows[1][:EVALUATED]
    outputs = problem.model(inputs)
    loss = float((problem.judged_by or problem.loss_fn)(outputs, targets))
    accuracy = None
    if problem.loss_fn is functional.cross_entropy:
        accuracy = float((outputs.argmax(1) == targets).float().mean())
    return loss if math.isfinite(loss) else math.inf, accuracy


def run(
    problem: Problem,
    make_optimizer: MakeOptimizer,
    batch_size: int,
    seed: int,
    rate: float,
    steps: int = STEPS,
) -> Result:
    """Trains for so many steps at a peak rate and judges what came of it."""
    optimizer = make_optimizer(problem.model.parameters(), rate)
    if fit(problem, optimizer, batch_size, seed, steps):
        return judge(problem)
    return Result(math.inf, math.inf, None)
