"""The loop of one stage: updates, epochs, and what is told on the way. No step waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrfast._utils.async_copy import Mirror
from lrfast._utils.progress import Progress
from lrfast.curve import CurveStatus, LossCurve
from lrfast.finetune._interrupts import Interrupts
from lrfast.finetune._stage_state import Moment, Run
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._schedule_driver import Driver, drive
from lrfast.training._captured import CapturedUpdate
from lrfast.training._data import DataEnded, device_of
from lrfast.training._random import RandomStates
from lrfast.training._step import Training


@dataclass(frozen=True)
class Hooks:
    """What the loop calls at its corners.

    Args:
        begin_epoch: With the epoch's index, before its data are asked for.
        end_step: With the updates so far and the loss, a tensor on the device.
        validate: Returns what validation finds, and keeps the best model.
        end_epoch: With the epoch's index and its row.
        should_stop: Whether somebody asked for the end.
    """

    begin_epoch: Callable[[int], None]
    end_step: Callable[[int, Tensor], None]
    validate: Callable[[], dict[str, float]]
    end_epoch: Callable[[int, dict[str, float]], None]
    should_stop: Callable[[], bool]


class Loop:
    """Trains one stage from where its run stands.

    Args:
        training: Model, optimizer, data and how a loss comes about.
        run: Plan and place; it goes on with every step.
        hooks: What to call on the way.
        loaders: Whose generators a moment holds.
        max_grad_norm: For an optimizer that does not clip by itself; None: no clipping.
        progress: Whether to show how far it is.
    """

    def __init__(
        self,
        training: Training,
        run: Run,
        hooks: Hooks,
        loaders: list[Any],
        *,
        max_grad_norm: float | None,
        progress: bool,
    ) -> None:
        self.run = run
        self._training = training
        self._hooks = hooks
        self._loaders = loaders
        self._max_grad_norm = max_grad_norm
        self._progress = progress
        self._curve = LossCurve(
            max(run.total_steps - len(run.losses), 1), device_of(training.model)
        )
        self._groups = training.optimizer.param_groups
        self._parameters = [p for group in self._groups for p in group["params"]]
        schedules = run.of_groups(len(self._groups))
        self.driver: Driver = drive(
            *(training.optimizer, schedules, run.total_steps, self._curve.stop_flag, run.applied),
            scaled=True,
        )
        self.own_rates = [self.driver.own(index)[0] for index in range(len(self._groups))]
        self._shown = schedules[-1].values(np.arange(run.total_steps)) * self.own_rates[-1]
        scale = self.driver.scale()
        self._late_scale = None if scale is None else Mirror(scale)
        # Our kernels obey the curve's flag; for another optimizer the host has to, in time.
        self._must_wait = not isinstance(training.optimizer, FusedOptimizer)
        self._captured = (
            CapturedUpdate(training, self._curve, self.driver.scale) if training.captures else None
        )
        self._began = time.perf_counter()

    def train(self, interrupts: Interrupts) -> str:
        """Train to the end of the stage, and return how it ended."""
        try:
            run = self.run
            title = f"training, {run.name}"
            with Progress(title, run.total_steps, done=run.step, shown=self._progress) as bar:
                return self._train(bar, interrupts)
        finally:
            if self._captured is not None:
                self._captured.release()

    def _train(self, bar: Progress, interrupts: Interrupts) -> str:
        run = self.run
        while run.epoch < run.epochs:
            self._pass(self._batches(), bar, interrupts)
            outcome = self._end_epoch()
            if outcome == "running" and self._hooks.should_stop():
                outcome = "stopped"
            if outcome != "running":
                return outcome
            interrupts.check()
        return "completed"

    def now(self, model: nn.Module) -> Run:
        """Return where the run stands, with all that is needed to go on. Waits for the device."""
        stopped_at = self._curve.status().stopped_at
        count = len(self._curve) if stopped_at is None else stopped_at + 1
        losses = self._curve.losses[:count].cpu().numpy()
        factors = self._curve.lrs[:count].cpu().nan_to_num(nan=1.0).numpy()  # NaN: no factor
        return replace(
            self.run,
            applied=int(self.driver.applied().cpu().numpy()),
            losses=np.concatenate([self.run.losses, losses]),
            factors=np.concatenate([self.run.factors, factors]),
            rows=list(self.run.rows),
            frozen=list(self.run.frozen),
            seconds=self.run.seconds + time.perf_counter() - self._began,
            moment=Moment.take(model, self._loaders),
        )

    def _batches(self) -> Iterator[Any]:
        """Begin a pass over the data, or find the place again where one was interrupted."""
        run = self.run
        if run.order is None:
            count = self._recorded()
            self._hooks.begin_epoch(run.epoch)
            run.frozen.append((count, [bool(g.get("frozen")) for g in self._groups]))
            run.order = RandomStates.take(self._loaders)
            return iter(self._training.data)
        now = RandomStates.take(self._loaders)
        run.order.put_back(self._loaders)
        batches = iter(self._training.data)
        for _ in range(run.used):
            next(batches, None)
        now.put_back(self._loaders)
        return batches

    def _pass(self, batches: Iterator[Any], bar: Progress, interrupts: Interrupts) -> None:
        """Train to the end of the data, or until the stage has to end."""
        run, size = self.run, self._training.accumulate
        while not run.has_ended_pass and (window := list(islice(batches, size))):
            loss = self._recorded_loss(window)
            status = self._curve.status() if self._must_wait else self._curve.poll()
            bar.show(run.step + 1, partial(self._numbers, status, run.epoch, run.step))
            if status.outcome != "running":
                return
            if self._captured is None:
                self._update()
            run.step += 1
            run.used += len(window)
            run.has_ended_pass = len(window) < size
            self._hooks.end_step(run.step, loss)
            if self._hooks.should_stop():
                return
            interrupts.check()
        if run.used == 0:
            raise DataEnded(
                f"train must yield a batch in every epoch, got none in epoch {run.epoch + 1}; can "
                "it be iterated only once? Pass a DataLoader or a list of batches"
            )

    def _recorded_loss(self, window: list[Any]) -> Tensor:
        """Record the loss before the update, which one that is not finite must not reach.

        A captured step comes with its update.
        """
        if self._captured is not None:
            return self._captured(window).clone()  # for callbacks to keep
        loss = self._training.backward(window)
        self._curve.record(loss, self.driver.scale(), skip=self._training.found_inf())
        return loss

    def _numbers(self, status: CurveStatus, epoch: int, step: int) -> dict[str, str]:
        """What the bar shows: the head's rate as far as the host knows it without waiting."""
        rate = self._shown[min(step, len(self._shown) - 1)]
        if self._late_scale is not None:
            rate *= self._late_scale.newest().numpy()[0] or 1.0  # 0: no copy has arrived yet
        loss = f"{status.smoothed:.4g}"
        return {"epoch": str(epoch + 1), "lr": f"{rate:.1e}", "loss": loss}

    def _update(self) -> None:
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self.driver.before_step()
        self._training.update()
        self.driver.after_step()

    def _end_epoch(self) -> str:
        run = self.run
        status = self._curve.status()  # waits, as validation does
        stopped_at = status.stopped_at
        count = self._recorded() if stopped_at is None else len(run.losses) + stopped_at + 1
        row = {"step": float(count)} | self._hooks.validate()
        run.rows.append(row)
        run.epoch, run.used, run.order, run.has_ended_pass = run.epoch + 1, 0, None, False
        self._hooks.end_epoch(run.epoch - 1, dict(row))
        return status.outcome

    def _recorded(self) -> int:
        return len(self.run.losses) + len(self._curve)


def own_groups(driver: Driver, packed: Iterable[dict[str, Any]]) -> None:
    """Write into a state dict's param groups what they hold without the schedule."""
    for index, group in enumerate(packed):
        rate, momentum = driver.own(index)
        lr = group["lr"]
        group["lr"] = torch.full_like(lr, rate) if isinstance(lr, Tensor) else rate
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum
