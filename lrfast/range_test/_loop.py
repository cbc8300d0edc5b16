"""Loop of a sweep: one update per learning rate, its loss recorded, without a synchronisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lrfast._utils.progress import Progress
from lrfast.curve import LossCurve
from lrfast.optim._schedule_driver import ScheduleDriver, attach_schedule
from lrfast.range_test._sweep import Sweep
from lrfast.training._captured import CapturedTrainStep
from lrfast.training._data import DataSize, device_of, set_training
from lrfast.training._step import Training, kind_of_step

# Points that are not judged: two losses do not show the noise, and losses of 1e-5 and then 1e-4, of
# a model that fits its data already, are no divergence.
_GRACE = 5

# Steps per point at most if a scaler skips some. A scale that begins at 2**16 and halves at each
# overflow reaches 1 within 16 steps.
_MAX_STEPS_PER_POINT = 4

# The same for a step function, which may accumulate the gradients of many batches.
_MAX_CALLS_PER_POINT = 64

# If ranks saw the stop flag at different steps, one would leave while another waits in a
# collective. On GPUs all ranks therefore poll at the same, few points.
_POINTS_BETWEEN_AGREEMENTS = 10


@dataclass
class SweepLoop:
    """One sweep: records the losses of a training at the sweep's learning rates, and one with lag.

    ``data_size`` is known once it has run.
    """

    training: Training
    sweep: Sweep
    beta: float  # the curve's, as diverge_threshold is
    diverge_threshold: float | None
    lag: int
    progress: bool

    def __post_init__(self) -> None:
        self._lrs = self.sweep.table()[:, self.sweep.reference]
        device = device_of(self.training.model)
        planned = torch.from_numpy(np.append(self._lrs, [np.nan] * self.lag))
        if device.type == "cuda":
            planned = planned.pin_memory().to(device, non_blocking=True)
        rates = None if self.training.step_fn else planned
        self.curve = LossCurve(
            len(planned),
            device,
            beta=self.beta,
            diverge_threshold=self.diverge_threshold,
            grace=_GRACE,
            rates=rates,
        )
        self.data_size = DataSize()

    def run(self) -> LossCurve:
        """Train through the learning rates and return the curve."""
        training, parts = self.training, self.sweep.parts()
        optimizer = training.optimizer
        if not training.model.training:
            training.model.train()
        set_training(optimizer, True)
        for group, (own_rate, _) in zip(optimizer.param_groups, parts, strict=True):
            group["lr"] = own_rate
        schedules = [schedule for _, schedule in parts]
        driver = attach_schedule(optimizer, schedules, self.sweep.num_iter, self.curve.stop_flag)
        kind = CapturedTrainStep if training.captures else kind_of_step(training)
        step = kind(training, self.curve, driver)
        if training.step_fn is not None:
            step.lr = partial(driver.last_rate, self.sweep.reference)
        batches = training.micro_batches()
        shown = self.progress and training.ranks.is_first
        bar = Progress("range test", len(self._lrs), shown=shown)
        try:
            for number in self._steps(driver):
                micro_batches = next(batches)
                if number == 0:
                    self.data_size = training.data_size(micro_batches)
                step.record(micro_batches)
                if self._has_ended(number, bar):
                    return self.curve
                step.update()
            if self.lag:
                step.record_only(next(batches))
        finally:
            bar.close()
            batches.close()
            step.release()
            driver.detach()
        return self.curve

    def _steps(self, driver: ScheduleDriver) -> Iterator[int]:
        """Yield the steps until each learning rate has its point: more if some are skipped."""
        count, step = len(self._lrs), 0
        missing, most = count, _MAX_STEPS_PER_POINT * count
        while missing > 0 and step < most:
            for _ in range(missing):
                yield step
                step += 1
            calls = self.training.step_fn is not None
            missing = count - len(self.curve) if calls or self.training.scaler is not None else 0
            if missing and calls:  # a trainer may step without a loss
                missing = min(missing, count - int(driver.steps_applied()))
            if calls and missing < count:
                most = _MAX_CALLS_PER_POINT * count

    def _has_ended(self, step: int, bar: Progress) -> bool:
        ranks, curve = self.training.ranks, self.curve
        is_late = curve.device.type != "cpu" and not ranks.is_alone
        if is_late and step % _POINTS_BETWEEN_AGREEMENTS:
            return False
        status = curve.status() if is_late else curve.poll()
        place = min(step, len(self._lrs) - 1)
        lr = self._lrs[place]
        bar.show(place + 1, lambda: {"lr": f"{lr:.1e}", "loss": f"{status.smoothed:.4g}"})
        return status.outcome != "running"
