"""What users hang into a stage: callbacks, and those that end it early or steer its rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lrfast._utils.validation import check_dict, check_float, check_int, check_tensor
from lrfast.finetune._setup import check_whole
from lrfast.optim._loss_schedules import LossSchedule

if TYPE_CHECKING:
    from lrfast.finetune._tuner import FineTuner


class Callback:
    """Base of what is called while a stage trains; every method does nothing until overridden.

    A stage calls ``on_fit_begin``, then for each epoch ``on_epoch_begin``, ``on_step_end`` after
    each applied update and, behind validation, ``on_epoch_end``; ``on_fit_end`` comes last, also
    after an exception. Several callbacks are called in the order in which they were given. A stage
    that :meth:`FineTuner.resume` continues calls ``on_fit_begin`` again, with
    ``tuner.running.is_resumed`` set, and ``on_epoch_begin`` only for epochs that begin.

    ``tuner.stop()`` ends the stage once all callbacks of the moment have been called.
    ``tuner.save(path)`` works at all of these. Callbacks behind the one that saves have not seen
    the moment yet, so let it come last.

    Example:
        >>> class Every100(Callback):
        ...     def on_step_end(self, tuner, step, loss):
        ...         if step % 100 == 0:
        ...             tuner.save("checkpoint.pt")
    """

    def on_fit_begin(self, tuner: FineTuner) -> None:
        """Be told that a stage begins or goes on; ``tuner.running`` says which.

        Args:
            tuner: Who trains.
        """

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        """Be told that an epoch begins, before its data are asked for.

        Args:
            tuner: Who trains.
            epoch: Index of the epoch within the stage, from 0.
        """

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        """Be told of an update. Must not wait for the device.

        Args:
            tuner: Who trains.
            step: Updates of this stage so far, 1 after the first.
            loss: The loss before the update, one element on the device, without gradient.
        """

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        """Be told what validation found.

        Args:
            tuner: Who trains.
            epoch: Index of the epoch that ended, from 0.
            row: "step", updates so far, and "valid_loss" and metrics where there are any.
        """

    def on_fit_end(self, tuner: FineTuner) -> None:
        """Be told that a stage ended; ``tuner.history.stages[-1]`` is what it did.

        Args:
            tuner: Who trained.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint shall keep: numbers, strings, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Args:
            state: What was returned.
        """


class EarlyStop(Callback):
    """Ends a stage when validation has stopped getting better.

    It reads what validation has read anyway, and waits for nothing.

    Args:
        patience: Looks without improvement in a row that end the stage, 1 or more.
        monitor: "valid_loss" or the name of a metric.
        mode: Whether lower ("min") or higher ("max") is better; None: lower for "valid_loss",
            higher for a metric.
        min_delta: By how much a value must be better than the best one to count as better.
        at: When to look: at each "epoch" end, or at the ends of a schedule's "cycle"s only, where
            the rate has come down: "until overfitting". A cycle that ends within an epoch is
            looked at when the epoch ends.

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
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a whole number, 1 or more, got {patience!r}")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ValueError(f"min_delta must be finite and not negative, got {min_delta}")
        if at not in ("epoch", "cycle"):
            raise ValueError(f"at must be 'epoch' or 'cycle', got {at!r}")
        self.patience = patience
        self.monitor = monitor
        self.mode = mode_of(monitor, mode)
        self.min_delta = min_delta
        self.at = at
        self.best: float | None = None
        self.waited = 0

    def on_fit_begin(self, tuner: FineTuner) -> None:
        """Forget what an earlier stage found."""
        if tuner.running is not None and not tuner.running.is_resumed:
            self.best, self.waited = None, 0

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        """Look, and end the stage where there was no improvement for too long."""
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
        """Return the best value and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        check_dict("state", state, ["best", "waited"])
        waited = check_int("waited", state["waited"])
        self.best = None if state["best"] is None else check_float("best", state["best"])
        self.waited = waited


class Observe(Callback):
    """Shows a loss-driven schedule what a stage measures; its factor multiplies the stage's rates.

    Each stage begins anew, with the factor 1. Nothing is read from the device.

    Args:
        schedule: A :class:`lrfast.Plateau` or :class:`lrfast.Greedy` of the tuner's optimizer; its
            ``mode`` says whether lower or higher is better.
        monitor: "valid_loss" or the name of a metric, observed at each epoch's end.
        every: Instead: the mean training loss of so many updates, as often as they are done, 1 or
            more.

    Raises:
        TypeError: If ``schedule`` is none.
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
        if not isinstance(schedule, LossSchedule):
            raise TypeError(f"schedule must be a Plateau or Greedy, got {type(schedule).__name__}")
        if every is not None and monitor != "valid_loss":
            raise ValueError(
                f"every={check_whole('every', every)} observes the training loss, so monitor must "
                f"be left out, got {monitor!r}"
            )
        self.schedule = schedule
        self.monitor = monitor
        self.every = None if every is None else check_whole("every", every)
        self._total: Tensor | None = None  # of the losses since the last observation

    def on_fit_begin(self, tuner: FineTuner) -> None:
        """Forget what an earlier stage showed."""
        if getattr(tuner.optimizer, "loss_schedule", None) is not self.schedule:
            raise ValueError(
                "schedule must be the loss_schedule of the tuner's optimizer, got another "
                f"{type(self.schedule).__name__}"
            )
        if tuner.running is not None and not tuner.running.is_resumed:
            self.schedule.reset()
            self._total = None

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        """Add the loss, and show the mean where it is time to."""
        if self.every is None:
            return
        loss = loss.detach().double()
        self._total = loss if self._total is None else self._total + loss
        if step % self.every == 0:
            self.schedule.observe(self._total / self.every)
            self._total = None

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        """Show what validation found."""
        if self.every is None:
            self.schedule.observe(row[check_monitored(self.monitor, row)])

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of the losses that have not been shown yet."""
        return {"total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the schedule's own state is the optimizer's to load."""
        total = check_dict("state", state, ["total"])["total"]
        if total is not None:
            total = check_tensor("total", total, torch.float64, 0).to(self.schedule.scale.device)
        self._total = total


def mode_of(monitor: str, mode: str | None) -> Literal["min", "max"]:
    """Return how a measure is judged.

    Raises:
        ValueError: If ``mode`` is neither "min" nor "max" nor None.
    """
    if mode == "min" or (mode is None and monitor == "valid_loss"):
        return "min"
    if mode == "max" or mode is None:
        return "max"
    raise ValueError(f"mode must be 'min', 'max' or None, got {mode!r}")


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Return whether a value beats the best one; NaN never does."""
    if best is None or math.isnan(best):
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta


def check_monitored(monitor: str, row: dict[str, float]) -> str:
    """Return the name of a measure, if validation measures it.

    Raises:
        ValueError: If it does not.
    """
    if monitor not in row:
        found = ", ".join(sorted(row.keys() - {"step"})) or "nothing, for there are no valid data"
        raise ValueError(f"monitor must be what validation measures ({found}), got {monitor!r}")
    return monitor
