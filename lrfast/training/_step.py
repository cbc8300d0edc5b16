"""How a point of the curve comes about: gradients and losses of models of any kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast.range_test._priors import Amounts
from lrfast.training._data import (
    ComputeLoss,
    check_loss,
    cycled,
    device_of,
    evaluating,
    length_of,
    one_pass,
    rows_of,
    size_of,
    targets_of,
    to_device,
    windows,
)
from lrfast.training._ranks import Ranks

StepFunction = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Training:
    """A model in training, as a range test sees it.

    Args:
        model: The module that trains.
        optimizer: Its optimizer.
        data: Batches, cycled where they are too few.
        loss_of: ``loss_of(model, batch)``.
        step_fn: Makes a whole training step and returns its loss, instead of ``loss_of``.
        accumulate: Batches per update.
        same_batch: Whether all updates see the batches of the first one.
        valid: Batches whose mean loss after an update is the point's loss; None: the training loss.
        judge: Batches whose mean loss decides a race; None: batches of ``data``.
        scaler: Scales losses, and skips steps whose gradients are not finite.
        ranks: The processes that train together.
        captures: Whether updates are captured, see :mod:`lrfast.training._captured`.
    """

    model: nn.Module
    optimizer: Optimizer
    data: Iterable[Any]
    loss_of: ComputeLoss
    step_fn: StepFunction | None = None
    accumulate: int = 1
    same_batch: bool = False
    valid: Iterable[Any] | None = None
    judge: Iterable[Any] | None = None
    scaler: torch.amp.GradScaler | None = None
    ranks: Ranks = field(default_factory=Ranks)
    captures: bool = False

    @property
    def takes_closure(self) -> bool:
        """Whether the optimizer evaluates the loss by itself, as LBFGS does."""
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        return closure is not None and closure.default is inspect.Parameter.empty

    def windows(self) -> Iterator[list[Any]]:
        """Yield the batches of one update after another, for ever."""
        batches = windows(cycled(self.data), self.accumulate)
        return repeat(next(batches)) if self.same_batch else batches

    def amounts(self, window: list[Any]) -> Amounts:
        """Return how much data the training learns from, going by the batches of one update."""
        rows = self.ranks.count * sum(rows_of(batch) for batch in window)
        targets = self.ranks.count * sum(targets_of(batch) for batch in window)
        batches = length_of(self.data)
        in_one_pass = targets * batches // len(window) if batches is not None else 0
        return Amounts(rows or None, in_one_pass or None)

    def backward(self, window: list[Any]) -> Tensor:
        """Set the gradients to those of the window's mean loss, and return that loss."""
        device = device_of(self.model)
        self.optimizer.zero_grad(set_to_none=not self.captures)  # a graph knows their places
        parts = []
        for index, batch in enumerate(window):
            with self.ranks.without_exchange(self.model, unless=index == len(window) - 1):
                loss = check_loss(self.loss_of(self.model, to_device(batch, device)))
                if len(window) > 1:
                    loss = loss / len(window)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            parts.append(loss.detach().to(device))
        total = parts[0] if len(parts) == 1 else torch.stack([p.double() for p in parts]).sum()
        return self.ranks.mean(total)

    def found_inf(self) -> Tensor | None:
        """Return, on the device, what the scaler found in the gradients; None without a scaler."""
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        self.scaler.unscale_(self.optimizer)
        found = self.scaler._found_inf_per_device(self.optimizer)
        device = device_of(self.model)
        return torch.stack([each.to(device, non_blocking=True) for each in found.values()]).sum(0)

    def update(self) -> None:
        """Let the optimizer step, through the scaler where there is one."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def closure_step(self, window: list[Any]) -> Tensor:
        """Let the optimizer step by itself and return the loss that it found first."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            with torch.enable_grad():
                losses.append(self.backward(window))
            return losses[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return losses[0]

    def validation_loss(self) -> Tensor:
        """Return the mean loss over the validation data, in evaluation mode."""
        assert self.valid is not None
        with evaluating(self.model):
            return self.loss(self.valid)

    def loss(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean loss over batches, in the present mode and without gradients.

        A batch's loss is taken as the mean over its rows.
        """
        device = device_of(self.model)
        total = torch.zeros((), dtype=torch.float64, device=device)
        rows = 0
        with torch.no_grad(), closing(one_pass(batches)) as present:
            for batch in present:
                loss = self.loss_of(self.model, to_device(batch, device))
                total += size_of(batch) * loss.detach().double().to(device).reshape(())
                rows += size_of(batch)
        if rows == 0:
            raise ValueError("valid must yield at least one batch, got none")
        return self.ranks.mean(total / rows)
