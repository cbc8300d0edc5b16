"""One training update with its loss recorded, for models and optimizers of any kind.

A :class:`TrainStep` makes every update of a range test, of a race and of fine-tuning. Its variants
differ in what is recorded, and in whether the update comes before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast.curve import LossCurve, _CurveRecorder
from lrfast.optim._schedule_driver import ScheduleDriver
from lrfast.optim._scheduling import set_rate
from lrfast.training._data import (
    ComputeLoss,
    DataSize,
    StepFunction,
    accumulation_windows,
    batch_size,
    check_loss,
    cycle_data,
    device_of,
    eval_mode,
    mean_over_batches,
    num_batches,
    num_class_targets,
    num_rows,
    to_device,
    weights_of_use,
)
from lrfast.training._ranks import Ranks

Rate = float | Tensor | None


class StepSkipped(Exception):
    """Raised by a :class:`TrainerUpdate` that has made no optimizer step."""


@dataclass(frozen=True)
class TrainerUpdate:
    """A trainer's own update, given as ``step_fn`` of a range test, which only observes it.

    Unlike a user's ``step_fn`` it takes all micro-batches of an update, and it goes along with a
    ``compute_loss``, which measures without an update.
    """

    begin: Callable[[], None]  # clears gradients and counters before a run's first update
    update: Callable[[list[Any]], Tensor]  # makes it, and returns the micro-batches' mean loss
    calls: int = 1  # of it per optimizer step; those before the last raise StepSkipped

    def __call__(self, micro_batches: list[Any]) -> Tensor:
        """Make the update of the micro-batches, and return their mean loss."""
        return self.update(micro_batches)


@dataclass(frozen=True)
class Training:
    """A model in training: with its optimizer, its data and its loss."""

    model: nn.Module
    optimizer: Optimizer
    train_loader: Iterable[Any]  # batches, cycled if they are too few
    compute_loss: ComputeLoss
    step_fn: StepFunction | None = None  # makes a whole step, instead of compute_loss
    gradient_accumulation_steps: int = 1  # micro-batches per update
    same_batch: bool = False  # all updates see the micro-batches of the first one
    val_loader: Iterable[Any] | None = None  # its mean loss after an update is recorded, if given
    judge_data: Iterable[Any] | None = None  # its mean loss decides a race; None: some of data
    scaler: torch.amp.GradScaler | None = None
    ranks: Ranks = field(default_factory=Ranks)
    captures: bool = False  # updates in a CUDA graph, see training._captured

    @property
    def takes_closure(self) -> bool:
        """Whether the optimizer evaluates the loss by itself, as LBFGS does."""
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        return closure is not None and closure.default is inspect.Parameter.empty

    def micro_batches(self) -> Generator[list[Any], None, None]:
        """Yield the micro-batches of one update after another, without end."""
        batches = accumulation_windows(
            cycle_data(self.train_loader), self.gradient_accumulation_steps
        )
        yield from repeat(next(batches)) if self.same_batch else batches

    def data_size(self, micro_batches: list[Any]) -> DataSize:
        """Return how much data the training learns from, by the micro-batches of one update."""
        calls = self.step_fn.calls if isinstance(self.step_fn, TrainerUpdate) else 1
        rows = calls * self.ranks.count * sum(num_rows(batch) for batch in micro_batches)
        targets = self.ranks.count * sum(num_class_targets(batch) for batch in micro_batches)
        batches = num_batches(self.train_loader)
        in_one_pass = targets * batches // len(micro_batches) if batches is not None else 0
        return DataSize(rows or None, in_one_pass or None)

    def backward(self, micro_batches: list[Any]) -> Tensor:
        """Set the gradients to those of the micro-batches' mean loss, and return that loss."""
        device = device_of(self.model)
        self.optimizer.zero_grad(set_to_none=not self.captures)  # a graph knows their places
        parts = []
        for index, batch in enumerate(micro_batches):
            with self.ranks.no_sync_unless_last(self.model, index == len(micro_batches) - 1):
                loss = check_loss(self.compute_loss(self.model, to_device(batch, device)))
                if len(micro_batches) > 1:
                    loss = loss / len(micro_batches)
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
        is_queued = device.type == "cuda"  # the CPU would read too early
        together = [each.to(device, non_blocking=is_queued) for each in found.values()]
        return torch.stack(together).sum(0)

    def loss(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean loss over the rows of batches, in the present mode, without gradients."""
        device = device_of(self.model)

        def measure(batch: Any) -> tuple[Tensor, int]:
            loss = self.compute_loss(self.model, to_device(batch, device))
            return loss.detach().double().to(device).reshape(()), batch_size(batch)

        return self.ranks.mean(mean_over_batches(batches, measure))

    def validation_loss(self, batches: Iterable[Any]) -> Tensor:
        """Return the mean loss over batches in evaluation mode."""
        with eval_mode(self.model), weights_of_use(self.optimizer):
            return self.loss(batches)


@dataclass
class TrainStep:
    """One update of a training, its loss recorded before it, which a bad loss must not reach.

    ``record`` and ``update`` are called in turn; the caller leaves the update out after a bad loss.
    """

    training: Training
    curve: LossCurve | _CurveRecorder  # on the training's device
    driver: ScheduleDriver
    # Returns the learning rate to record with a loss; None: the planned one, or none.
    lr: Callable[[], Rate] = lambda: None
    max_grad_norm: float | None = None  # for an optimizer that does not clip by itself

    def record(self, micro_batches: list[Any]) -> Tensor:
        """Set the gradients, record the loss of the micro-batches, and return it."""
        loss = self.training.backward(micro_batches)
        self.curve.record(loss, self.lr(), skip=self.training.found_inf())
        return loss

    def update(self) -> None:
        """Make the update whose loss was recorded."""
        self._step()

    def _step(self) -> None:
        """Clip, and let the optimizer step under its schedule, by the scaler if there is one."""
        training = self.training
        if self.max_grad_norm is not None:
            params = [p for group in training.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm)
        self.driver.before_step()
        if training.scaler is None:
            try:
                training.optimizer.step()
            except (AssertionError, TypeError) as error:
                _check_step(training.optimizer, error)
                raise
        else:
            training.scaler.step(training.optimizer)
            training.scaler.update()
        self.driver.after_step()

    def record_only(self, micro_batches: list[Any]) -> None:
        """Record the loss of the micro-batches without an update."""
        self.curve.record(self.training.loss(micro_batches))

    def release(self) -> None:
        """Let go of what the updates have needed."""


class UpdateFirst(TrainStep):
    """One update of a training, made before its loss is recorded: there is none to leave out."""

    def update(self) -> None:
        """Do nothing: the update was made when its loss was recorded."""


class ValidatedStep(UpdateFirst):
    """One update, and the mean loss over the validation data after it."""

    def record(self, micro_batches: list[Any]) -> Tensor:
        """Make the update, record the validation loss, and return it."""
        training = self.training
        assert training.val_loader is not None
        training.backward(micro_batches)
        skip = training.found_inf()
        self._step()
        loss = training.validation_loss(training.val_loader)
        self.curve.record(loss, skip=skip)
        return loss


class ClosureStep(UpdateFirst):
    """One update of an optimizer that evaluates the loss by itself.

    Recorded is the loss that it finds first, or the validation loss after the update.
    """

    def record(self, micro_batches: list[Any]) -> Tensor:
        """Make the update, record its loss, and return it."""
        training = self.training
        losses: list[Tensor] = []

        def closure() -> Tensor:
            with torch.enable_grad():
                losses.append(training.backward(micro_batches))
            return losses[-1]

        self.driver.before_step()
        training.optimizer.step(closure)  # type: ignore[arg-type]
        self.driver.after_step()
        val_loader = training.val_loader
        loss = losses[0] if val_loader is None else training.validation_loss(val_loader)
        self.curve.record(loss)
        return loss


@dataclass
class UserStep(UpdateFirst):
    """One update by the user's or a trainer's own training step, and the loss that it returns.

    A step in which the optimizer did not step adds no point, nor does one without a loss.
    """

    def __post_init__(self) -> None:
        if isinstance(self.training.step_fn, TrainerUpdate):
            self.training.step_fn.begin()

    def record(self, micro_batches: list[Any]) -> Tensor:
        """Make the update, record its loss with the learning rate that it used, and return it."""
        training, step_fn, driver = self.training, self.training.step_fn, self.driver
        assert step_fn is not None
        count = driver.steps_applied().clone()
        driver.before_step()
        is_trainers = isinstance(step_fn, TrainerUpdate)
        rates = _rates_of(training.optimizer)
        check = partial(_check_rates, rates)
        hook = training.optimizer.register_step_pre_hook(check)
        try:
            made = step_fn(micro_batches if is_trainers else micro_batches[0])
        except StepSkipped:
            return torch.tensor(torch.nan, device=self.curve.device)
        finally:
            hook.remove()
            driver.after_step()
        if is_trainers:  # whose hooks would overwrite what is found
            _check_rates(rates, training.optimizer)
        else:
            _restore_rates(training.optimizer, rates)
        loss = check_loss(made, needs_grad=False).detach().to(self.curve.device)
        if training.val_loader is None:
            loss = training.ranks.mean(loss)
        else:
            loss = training.validation_loss(training.val_loader)
        skip = _has_stayed(count, driver.steps_applied(), self.curve.device)
        self.curve.record(loss, self.lr(), skip=skip)
        return loss

    def record_only(self, micro_batches: list[Any]) -> None:
        """Record the loss of a trainer's micro-batches; a whole step can only make one update."""
        if isinstance(self.training.step_fn, TrainerUpdate):
            self.curve.record(self.training.loss(micro_batches), self.lr())
        else:
            self.record(micro_batches)


class _GivenRate(NamedTuple):
    """A param group's learning rate as the range test set it, and its value if it is a tensor."""

    lr: Any
    version: int
    value: Any


def _rates_of(optimizer: Optimizer) -> list[_GivenRate]:
    """Return each group's learning rate, by which a change is seen without a synchronisation."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    return [
        _GivenRate(lr, lr._version, lr.clone()) if isinstance(lr, Tensor) else _GivenRate(lr, 0, lr)
        for lr in lrs
    ]


def _is_as_given(group: dict[str, Any], given: _GivenRate) -> bool:
    lr = group["lr"]
    if isinstance(lr, Tensor):
        return lr is given.lr and lr._version == given.version
    return bool(not isinstance(given.lr, Tensor) and lr == given.lr)


def _check_rates(
    given: list[_GivenRate], optimizer: Optimizer, args: Any = (), kwargs: Any = None
) -> None:
    """Refuse an update at other learning rates than those that the range test has set."""
    for index, (group, old) in enumerate(zip(optimizer.param_groups, given, strict=True)):
        if not _is_as_given(group, old):
            raise ValueError(
                f"the training step must keep the learning rates, got {group['lr']} for param "
                f"group {index}, to which the range test had given {old.value}; leave schedulers "
                "and warm-ups out of the step while it runs"
            )


def _restore_rates(optimizer: Optimizer, given: list[_GivenRate]) -> None:
    """Undo what a scheduler in the step has set behind the update."""
    for group, old in zip(optimizer.param_groups, given, strict=True):
        if not _is_as_given(group, old):
            group["lr"] = old.lr
            set_rate(group, old.value)


def _check_step(optimizer: Optimizer, error: Exception) -> None:
    """Raise TypeError if a step failed because its optimizer wants a closure after all."""
    wanted = "closure" in str(error) or "'NoneType' object is not callable" in str(error)
    if wanted and "closure" in inspect.signature(optimizer.step).parameters:
        raise TypeError(
            "optimizer must make a step after a backward pass without a closure, got "
            f"{type(optimizer).__name__}, whose step needs one; pass step_fn, which makes the "
            "whole step"
        ) from error


def record_call(
    step: StepFunction,
    batch: Any,
    curve: LossCurve | _CurveRecorder,
    lr: Callable[[], Rate],
    count: Callable[[], Tensor] | None,
) -> Tensor:
    """Make a whole step, record its loss unless the count of steps stays as it was; return it."""
    before = None if count is None else count().clone()
    loss = check_loss(step(batch), needs_grad=False).detach()
    skip = None
    if count is not None and before is not None:
        skip = _has_stayed(before, count(), curve.device)
    curve.record(loss, lr(), skip=skip)
    return loss


def _has_stayed(before: Tensor, now: Tensor, device: torch.device) -> Tensor:
    """Return whether a count is what it was, float64 on a device, without a synchronisation."""
    is_queued = device.type == "cuda"  # the CPU would read too early
    return torch.eq(now, before).to(device, torch.float64, non_blocking=is_queued)


def kind_of_step(training: Training) -> type[TrainStep]:
    """Return the kind of eager step that a training takes."""
    if training.step_fn is not None:
        return UserStep
    if training.takes_closure:
        return ClosureStep
    return TrainStep if training.val_loader is None else ValidatedStep
