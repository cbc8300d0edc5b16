"""Callbacks of a stage: their base, early stopping, and the input of loss-driven schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast._utils.decode import decode_fields, optional
from lrfast._utils.validation import (
    check_choice,
    check_count,
    check_dict,
    check_float,
    check_int,
    check_nonnegative,
    check_tensor,
)
from lrfast.finetune._best_model import Best
from lrfast.finetune._history import History, Stage
from lrfast.finetune._metrics import check_monitored, is_better, mode_of
from lrfast.finetune._stage_state import Run, StageOptions
from lrfast.groups import LayerGroups, NormPolicy, Rates
from lrfast.optim._loss_schedules import LossSchedule
from lrfast.range_test import RangeTest
from lrfast.training._data import LossFunction


class Tuner(Protocol):
    """The part of FineTuner that callbacks, checkpoints and recipes use; it imports theirs."""

    model: nn.Module
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    loss_fn: LossFunction | None
    optimizer: Optimizer
    groups: LayerGroups
    norm_mode: NormPolicy
    amp: torch.dtype | None
    scaler: torch.amp.GradScaler | None
    gradient_accumulation_steps: int
    max_grad_norm: float | None
    ema_decay: float | None
    best: Best | None
    callbacks: list[Callback]
    history: History

    @property
    def running(self) -> Run | None: ...
    @property
    def epoch_steps(self) -> int: ...
    @property
    def loaders(self) -> list[Any]: ...
    def freeze(self) -> None: ...
    def unfreeze(self) -> None: ...
    def stop(self) -> None: ...
    def validate(self) -> dict[str, float]: ...
    def finished_stages(self) -> list[Stage]: ...
    def lr_find(self, **options: Any) -> RangeTest: ...
    def fit_one_cycle(
        self, epochs: int, max_lr: Rates, **options: Unpack[StageOptions]
    ) -> Stage: ...
    def fit_sgdr(
        self,
        cycles: int,
        cycle_len: int,
        max_lr: Rates,
        *,
        cycle_mult: float = 2.0,
        **options: Unpack[StageOptions],
    ) -> Stage: ...
    def resume(self) -> Stage: ...


class Callback:
    """Base class of callbacks; every method does nothing until overridden.

    A stage calls ``on_fit_begin``, then for each epoch ``on_epoch_begin``, ``on_step_end`` after
    each update and, after validation, ``on_epoch_end``; ``on_fit_end`` comes last, also after an
    exception. Callbacks are called in the order of the list. A stage that
    :meth:`FineTuner.resume` continues calls ``on_fit_begin`` again, with
    ``tuner.running.is_resumed`` set, and ``on_epoch_begin`` only for epochs that begin.

    ``tuner.stop()`` ends the stage once all callbacks have handled the current event.
    ``tuner.save(path)`` works in all of these methods. Put the callback that saves last: later
    ones have not handled the event yet, so that their state in the file would be stale.

    Example:
        >>> class Every100(Callback):
        ...     def on_step_end(self, tuner, step, loss):
        ...         if step % 100 == 0:
        ...             tuner.save("checkpoint.pt")
    """

    # With a Protocol instead of Any, an override that says FineTuner would be a type error.

    def on_fit_begin(self, tuner: Any) -> None:
        """Handle the begin or the continuation of a stage; see ``tuner.running.is_resumed``.

        Args:
            tuner: The :class:`FineTuner` that trains.
        """

    def on_epoch_begin(self, tuner: Any, epoch: int) -> None:
        """Handle the begin of an epoch, before its data are iterated.

        Args:
            tuner: The :class:`FineTuner` that trains.
            epoch: Index of the epoch within the stage, from 0.
        """

    def on_step_end(self, tuner: Any, step: int, loss: Tensor) -> None:
        """Handle an update. A host-device synchronisation here slows training down.

        Args:
            tuner: The :class:`FineTuner` that trains.
            step: Updates of this stage so far, 1 after the first.
            loss: The loss before the update, one element on the device, without gradient.
        """

    def on_epoch_end(self, tuner: Any, epoch: int, row: dict[str, float]) -> None:
        """Handle the end of an epoch and its validation.

        Args:
            tuner: The :class:`FineTuner` that trains.
            epoch: Index of the epoch that ended, from 0.
            row: "step", updates so far, and "valid_loss" and metrics if there are any.
        """

    def on_fit_end(self, tuner: Any) -> None:
        """Handle the end of a stage; ``tuner.history.stages[-1]`` is its record.

        Args:
            tuner: The :class:`FineTuner` that trained.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints: numbers, strings, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Args:
            state: The returned state.
        """


@checked_methods("on_fit_begin", "on_epoch_end")
class EarlyStop(Callback):
    """Ends a stage when validation has stopped getting better; no synchronisation of its own.

    Args:
        patience: Checks in a row without improvement that end the stage, 1 or more (default 3).
        monitor: "valid_loss" (default) or the name of a metric.
        mode: Whether lower ("min") or higher ("max") is better; None (default): lower for
            "valid_loss", higher for a metric.
        min_delta: Least difference from the best value that counts as better, in the measure's
            unit, 0 (default) or more.
        at: When to check: at each "epoch" end (default), or only at the ends of a schedule's
            "cycle"s, where the learning rate is lowest. A cycle that ends within an epoch is
            checked when the epoch ends.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> stop = EarlyStop(patience=1, at="cycle")
        >>> stop.mode
        'min'
    """

    def __init__(
        self,
        patience: int = 3,
        monitor: str = "valid_loss",
        mode: Literal["min", "max"] | None = None,
        min_delta: float = 0.0,
        at: Literal["epoch", "cycle"] = "epoch",
    ) -> None:
        self.patience = check_count("patience", patience)
        check_nonnegative("min_delta", min_delta)
        check_choice("at", at, ("epoch", "cycle"))
        self.monitor = monitor
        self.mode = mode_of(monitor, mode)
        self.min_delta = min_delta
        self.at = at
        self.best: float | None = None
        self.waited = 0

    def on_fit_begin(self, tuner: Tuner) -> None:
        """Forget the values of an earlier stage."""
        if tuner.running is not None and not tuner.running.is_resumed:
            self.best, self.waited = None, 0

    def on_epoch_end(self, tuner: Tuner, epoch: int, row: dict[str, float]) -> None:
        """Check, and end the stage after too many checks without improvement."""
        if self.at == "cycle" and not (tuner.running and tuner.running.is_cycle_end):
            return
        value = row[check_monitored(self.monitor, row)]
        if is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            tuner.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of checks since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        checks = {"best": optional(check_float), "waited": check_int}
        self.best, self.waited = decode_fields("state", state, checks).values()


@checked_methods("on_fit_begin", "on_step_end", "on_epoch_end")
class Observe(Callback):
    """Feeds a loss-driven schedule, whose factor multiplies the stage's learning rates.

    Each stage begins anew, with the factor 1. Nothing is read from the device.

    Args:
        schedule: A :class:`lrfast.Plateau` or :class:`lrfast.Greedy` of the tuner's optimizer; its
            ``mode`` says whether lower or higher is better.
        monitor: "valid_loss" (default) or the name of a metric, observed at each epoch's end.
        every: Instead of ``monitor``: observe the mean training loss of every so many updates, 1
            or more; None (default): observe ``monitor``.

    Raises:
        TypeError: If ``schedule`` is no loss-driven schedule.
        ValueError: If ``every`` is out of range, or comes with a ``monitor``; in a stage also if
            ``schedule`` is not the optimizer's, or validation does not measure ``monitor``.

    Example:
        >>> import torch, lrfast
        >>> batch = (torch.randn(8, 2), torch.randn(8, 1))
        >>> tuner = lrfast.FineTuner(torch.nn.Linear(2, 1), [batch] * 5, [batch], progress=False,
        ...                          loss_fn=torch.nn.functional.mse_loss)
        >>> plateau = lrfast.Plateau(tuner.optimizer, factor=0.5, patience=0, threshold=1.0,
        ...                          threshold_mode="abs")  # nothing is good enough
        >>> tuner.callbacks.append(lrfast.finetune.Observe(plateau))
        >>> stage = tuner.fit(3, lrfast.schedules.constant(), lr=0.01)
        >>> stage.rates[[0, 5, 10], 0].tolist()
        [0.01, 0.01, 0.005]
    """

    def __init__(
        self, schedule: LossSchedule, monitor: str = "valid_loss", every: int | None = None
    ) -> None:
        self.schedule = schedule
        self.monitor = monitor
        self.every = None if every is None else check_count("every", every)
        if every is not None and monitor != "valid_loss":
            raise ValueError(
                f"every={every} observes the training loss, so monitor must be left out, got "
                f"{monitor!r}"
            )
        self._total: Tensor | None = None  # of the losses since the last observation

    def on_fit_begin(self, tuner: Tuner) -> None:
        """Forget the losses of an earlier stage, and reset the schedule."""
        if getattr(tuner.optimizer, "loss_schedule", None) is not self.schedule:
            raise ValueError(
                "schedule must be the loss_schedule of the tuner's optimizer, got another "
                f"{type(self.schedule).__name__}"
            )
        if tuner.running is not None and not tuner.running.is_resumed:
            self.schedule.reset()
            self._total = None

    def on_step_end(self, tuner: Tuner, step: int, loss: Tensor) -> None:
        """Add the loss, and pass the mean on after every ``every`` updates."""
        if self.every is None:
            return
        loss = loss.detach().double()
        self._total = loss if self._total is None else self._total + loss
        if step % self.every == 0:
            self.schedule.observe(self._total / self.every)
            self._total = None

    def on_epoch_end(self, tuner: Tuner, epoch: int, row: dict[str, float]) -> None:
        """Pass the monitored validation measure on."""
        if self.every is None:
            self.schedule.observe(row[check_monitored(self.monitor, row)])

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of the losses since the last observation."""
        return {"total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; the optimizer loads the schedule's own state."""
        total = check_dict("state", state, ["total"])["total"]
        if total is not None:
            total = check_tensor("total", total, torch.float64, 0).to(self.schedule.scale.device)
        self._total = total
