"""The training loop of one stage: updates, their curve, and Ctrl-C between two of them.

The loop makes the updates of an epoch one by one; the fine-tuner, which iterates over them, calls
its callbacks and validates. No update synchronises with an optimizer of lrfast.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any

import numpy as np
from torch import Tensor, nn

from lrfast._utils.async_copy import AsyncHostCopy
from lrfast._utils.progress import Progress
from lrfast.curve import CurveStatus, LossCurve
from lrfast.finetune._epoch_table import epoch_table
from lrfast.finetune._stage_state import ResumePoint, Run, epoch_batches
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._schedule_driver import ScheduleDriver, attach_schedule
from lrfast.range_test import WarmupSearch
from lrfast.training._captured import CapturedTrainStep
from lrfast.training._data import DataExhausted, device_of
from lrfast.training._random import RandomStates
from lrfast.training._step import Training, TrainStep


class Loop:
    """Makes the updates of a run, which advances with them; its block shows a progress bar."""

    def __init__(
        self,
        training: Training,
        run: Run,
        loaders: list[Any],
        *,
        search: WarmupSearch | None,  # that the first steps are
        max_grad_norm: float | None,  # for an optimizer that does not clip by itself
        progress: bool,
    ) -> None:
        self.run = run
        self.should_stop = False
        self._training = training
        self._loaders = loaders
        self._search = search
        self._epoch_start = len(run.losses)  # losses before the epoch, counted where a sync is due
        self._groups = training.optimizer.param_groups
        names = enumerate(self._groups)
        self.group_names = [str(group.get("name", f"group {index}")) for index, group in names]
        # lrfast's kernels obey the curve's flag; for another optimizer the host has to, in time.
        self._must_wait = not isinstance(training.optimizer, FusedOptimizer)
        self._max_grad_norm = max_grad_norm
        self._attach()
        self._length = epoch_batches(training.train_loader)
        self._has_warned = False  # of an epoch of another length
        self._shows_progress = progress
        self._began = self._epoch_began = time.perf_counter()
        self._epoch_seconds: list[float] = []

    def __enter__(self) -> Loop:
        run, shown = self.run, self._shows_progress
        self._bar = Progress(run.name, run.total_steps, done=run.step, shown=shown)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._bar.close()
        finally:
            self._step.release()

    def _attach(self) -> None:
        """Attach the schedules of the steps that are left, with a curve for them."""
        run, training = self.run, self._training
        steps_left = max(run.total_steps - len(run.losses), 1)
        self._curve = LossCurve(steps_left, device_of(training.model))
        schedules = run.of_groups(len(self._groups))
        plan = (training.optimizer, schedules, run.total_steps, self._curve.stop_flag, run.applied)
        self.driver: ScheduleDriver = attach_schedule(*plan, scaled=True)
        base = self.driver.base_hyperparameters
        self.own_rates = [base(index)[0] for index in range(len(self._groups))]
        self._shown = schedules[-1].values(np.arange(run.total_steps)) * self.own_rates[-1]
        scale = self.driver.loss_factor()
        self._late_scale = None if scale is None else AsyncHostCopy(scale)
        self._step = self._make_step()

    def _make_step(self) -> TrainStep:
        kind = CapturedTrainStep if self._training.captures else TrainStep
        parts = (self._training, self._curve, self.driver)
        return kind(*parts, lr=self.driver.loss_factor, max_grad_norm=self._max_grad_norm)

    def now(self, model: nn.Module) -> Run:
        """Return the run with all that is needed to resume it; synchronises."""
        return replace(
            self._recorded(),
            applied=int(self.driver.steps_applied().cpu().numpy()),
            rows=list(self.run.rows),
            frozen=list(self.run.frozen),
            seconds=self.run.seconds + time.perf_counter() - self._began,
            search=None if self._search is None else self._search.state_dict(),
            moment=ResumePoint.take(model, self._loaders),
        )

    def _recorded(self) -> Run:
        """Return the run with its losses so far; synchronises."""
        count = self._num_losses(self._curve.status())
        losses = self._curve.losses[:count].cpu().numpy()
        factors = self._curve.lrs[:count].cpu().nan_to_num(nan=1.0).numpy()  # NaN: no factor
        return replace(
            self.run,
            losses=np.concatenate([self.run.losses, losses]),
            factors=np.concatenate([self.run.factors, factors]),
        )

    def updates(self) -> Iterator[Tensor]:
        """Make the updates that the epoch has left, and yield the loss before each of them.

        A loss that is not finite ends the epoch; its update changes nothing and is not yielded.
        """
        run, size = self.run, self._training.gradient_accumulation_steps
        batches = self._batches()
        while not run.has_ended_pass and (micro_batches := list(islice(batches, size))):
            self._check_length(run.used + len(micro_batches), has_ended=False)
            if self._curve._make_room(run.epoch_steps):
                self._step.release()  # a graph holds the places of the losses
                self._step = self._make_step()
            loss = self._step.record(micro_batches)
            if self._training.captures:
                loss = loss.clone()  # for callbacks to keep
            status = self._curve.status() if self._must_wait else self._curve.poll()
            self._bar.show(run.step + 1, partial(self._numbers, status, run.epoch, run.step))
            if status.outcome != "running" and self._search is None:
                return
            self._step.update()
            run.step += 1
            run.used += len(micro_batches)
            run.has_ended_pass = len(micro_batches) < size
            if self._search is not None:
                self._observe(self._search, loss, micro_batches)
            yield loss
        if run.used == 0:
            raise DataExhausted(
                f"train_loader must yield a batch in every epoch, got none in epoch {run.epoch + 1}"
                "; can it be iterated only once? Pass a DataLoader or a list of batches"
            )
        self._check_length(run.used, has_ended=True)

    def _observe(self, search: WarmupSearch, loss: Tensor, micro_batches: list[Any]) -> None:
        """Note a step of the sweep; after the last one, go on with what the search has attached."""
        run = self.run
        if run.step == 1:
            search.data_size = self._training.data_size(micro_batches)
        if search.observe(loss) is None:
            return
        recorded = self._recorded()
        run.losses, run.factors, run.applied = recorded.losses, recorded.factors, search.spent
        run.schedules = tuple(search.schedules)
        self._search = None  # after the losses were taken
        self._step.release()  # a graph holds the places of the losses
        self._attach()

    def end_epoch(self, measures: dict[str, float]) -> tuple[dict[str, float], str]:
        """Advance the run to the next epoch; return this one's row and the curve's outcome."""
        run, status = self.run, self._curve.status()  # synchronises, as validation does
        self._epoch_start = len(run.losses) + self._num_losses(status)
        row = {"step": float(self._epoch_start)} | measures
        run.rows.append(row)
        run.epoch, run.used = run.epoch + 1, 0
        run.order, run.has_ended_pass = None, False
        self._show_epoch()
        return dict(row), "running" if self._search is not None else status.outcome

    def _show_epoch(self) -> None:
        """Print the epoch's row of the table, below its header in the first."""
        now = time.perf_counter()
        self._epoch_seconds.append(now - self._epoch_began)
        self._epoch_began = now
        if self._bar.is_shown:
            stage = self._recorded().stage(self.own_rates, "running")
            times = [0.0] * (len(stage.epochs) - len(self._epoch_seconds)) + self._epoch_seconds
            lines = epoch_table(stage, times)
            for line in lines[-1:] if len(self._epoch_seconds) > 1 else [lines[0], lines[-1]]:
                self._bar.write(line)

    def _check_length(self, used: int, has_ended: bool) -> None:
        """Warn, once, of an epoch with more batches than the data's length, or fewer."""
        length = self._length
        if self._has_warned or used == length or (used < length and not has_ended):
            return
        self._has_warned, run = True, self.run
        what, then = "fewer", f"ends before its {run.total_steps} planned steps"
        if used > length:
            what, then = "more", f"holds its last learning rate after {run.total_steps} steps"
        warnings.warn(
            f"train_loader must yield as many batches as its length says, {length}, got {what} in "
            f"epoch {run.epoch + 1}: the schedule {then}",
            stacklevel=2,
        )

    def _num_losses(self, status: CurveStatus) -> int:
        if status.stopped_at is None or self._search is not None:
            return len(self._curve)
        return status.stopped_at + 1

    def _batches(self) -> Iterator[Any]:
        """Begin an epoch of the data, or return to the batch at which one was interrupted."""
        run = self.run
        if run.order is None:
            run.frozen.append((self._epoch_start, [bool(g.get("frozen")) for g in self._groups]))
            run.order = RandomStates.take(self._loaders)
            return iter(self._training.train_loader)
        now = RandomStates.take(self._loaders)
        run.order.restore(self._loaders)
        batches = iter(self._training.train_loader)
        for _ in range(run.used):
            next(batches, None)
        now.restore(self._loaders)
        return batches

    def _numbers(self, status: CurveStatus, epoch: int, step: int) -> dict[str, str]:
        """Return the bar's numbers; the head's learning rate is the newest that the host knows."""
        rate = self._shown[min(step, len(self._shown) - 1)]
        if self._late_scale is not None:
            rate *= self._late_scale.latest().numpy()[0] or 1.0  # 0: no copy has arrived yet
        loss = f"{status.smoothed:.4g}"
        return {"epoch": str(epoch + 1), "lr": f"{rate:.1e}", "loss": loss}


class Interrupts:
    """Delays a Ctrl-C until :meth:`check`; a second one is raised at once.

    Only in the main thread, and only if nothing else handles the signal.
    """

    def __init__(self) -> None:
        self._is_pending = False
        self._is_installed = False

    def __enter__(self) -> Interrupts:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._is_installed = True
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_pending and kind is not KeyboardInterrupt:
            # It came after the last update, or caused the error: workers of a DataLoader get the
            # signal too, and end.
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one."""
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pending:
            raise KeyboardInterrupt
        self._is_pending = True
