"""The sweep itself: one update per rate, its loss recorded, nothing waited for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from lrfast._utils.progress import Progress
from lrfast.curve import LossCurve
from lrfast.optim._schedule_driver import Driver, drive
from lrfast.range_test._priors import Amounts
from lrfast.range_test._sweep import Sweep
from lrfast.training._captured import CapturedUpdate
from lrfast.training._data import check_loss, close, device_of, upload
from lrfast.training._step import Training

# Points that are not judged: two losses do not tell how noisy they are, and those of a model that
# fits its data already, 1e-5 and then 1e-4, are no divergence.
_GRACE = 5

# Steps per point at most where a scaler skips some. One that begins at 2**16 and halves at each
# overflow reaches 1 within 16 steps.
_MAX_STEPS_PER_POINT = 4

# Ranks whose host learns of the end at different times would wait for each other for ever. On a GPU
# they therefore look at the same, rare, points.
_POINTS_BETWEEN_AGREEMENTS = 10


class Loop:
    """One sweep; ``amounts`` says afterwards how much data it met.

    Args:
        training: How a point comes about.
        sweep: The rates.
        beta: Decay of the curve's EMA.
        stop: The curve's stop rule; None: never.
        lag: 1 to record one loss more, the one after the last update.
        progress: Whether to show how far it is.
    """

    def __init__(
        self,
        training: Training,
        sweep: Sweep,
        *,
        beta: float,
        stop: float | None,
        lag: int,
        progress: bool,
    ) -> None:
        self._training = training
        self._sweep = sweep
        self._lag = lag
        self._progress = progress and training.ranks.is_first
        self._rates = sweep.table()[:, sweep.reference]
        device = device_of(training.model)
        planned = np.append(self._rates, [np.nan] * lag)
        self.curve = LossCurve(
            len(planned),
            device,
            beta=beta,
            stop=stop,
            grace=_GRACE,
            rates=None if training.step_fn else upload(planned, device),
        )
        self.amounts = Amounts()

    def run(self) -> LossCurve:
        """Train through the rates and return the curve."""
        training, parts = self._training, self._sweep.parts()
        optimizer = training.optimizer
        if not training.model.training:
            training.model.train()
        for group, (own_rate, _) in zip(optimizer.param_groups, parts, strict=True):
            group["lr"] = own_rate
        schedules = [schedule for _, schedule in parts]
        driver = drive(optimizer, schedules, self._sweep.num_iter, self.curve.stop_flag)
        point = _make_point(training, driver, self.curve, self._sweep.reference)
        windows = training.windows()
        counted = self._counted(windows)
        bar = Progress("range test", len(self._rates), shown=self._progress)
        try:
            for step in self._steps():
                point.begin(next(counted))
                if self._has_ended(step, bar):
                    return self.curve
                point.end()
            if self._lag:
                point.look_on(next(counted))
        finally:
            bar.close()
            close(counted, windows)
            point.release()
            driver.detach()
        return self.curve

    def _counted(self, windows: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """Pass the windows on, and see from the first one how much data there are."""
        for window in islice(windows, 1):
            self.amounts = self._training.amounts(window)
            yield window
        yield from windows

    def _steps(self) -> Iterator[int]:
        """Count the steps until every rate has its point: more of them where some are skipped."""
        count, step = len(self._rates), 0
        missing = count
        while missing > 0 and step < _MAX_STEPS_PER_POINT * count:
            for _ in range(missing):
                yield step
                step += 1
            may_skip = self._training.scaler is not None or self._training.step_fn is not None
            missing = count - len(self.curve) if may_skip else 0

    def _has_ended(self, step: int, bar: Progress) -> bool:
        ranks, curve = self._training.ranks, self.curve
        is_late = curve.device.type != "cpu" and not ranks.is_alone
        if is_late and step % _POINTS_BETWEEN_AGREEMENTS:
            return False
        status = curve.status() if is_late else curve.poll()
        place = min(step, len(self._rates) - 1)
        bar.show(
            place + 1,
            lambda: {"lr": f"{self._rates[place]:.1e}", "loss": f"{status.smoothed:.4g}"},
        )
        return status.outcome != "running"


class _BeforeUpdate:
    """The training loss, recorded before the update at its rate, which a bad loss prevents."""

    def __init__(self, training: Training, driver: Driver, curve: LossCurve) -> None:
        self._training = training
        self._driver = driver
        self._curve = curve

    def begin(self, window: list[Any]) -> None:
        loss = self._training.backward(window)
        self._curve.record(loss, skip=self._training.found_inf())

    def end(self) -> None:
        self._update()

    def look_on(self, window: list[Any]) -> None:
        self._curve.record(self._training.loss(window))

    def release(self) -> None:
        pass

    def _update(self) -> None:
        self._driver.before_step()
        self._training.update()
        self._driver.after_step()


class _Captured(_BeforeUpdate):
    """The same in one graph, in which the device leaves an update out after a bad loss."""

    def __init__(self, training: Training, driver: Driver, curve: LossCurve) -> None:
        super().__init__(training, driver, curve)
        self._step = CapturedUpdate(training, curve)

    def begin(self, window: list[Any]) -> None:
        self._step(window)

    def end(self) -> None:
        pass

    def release(self) -> None:
        self._step.release()


class _Validated(_BeforeUpdate):
    """The loss over the validation data, recorded after the update at its rate."""

    def begin(self, window: list[Any]) -> None:
        self._training.backward(window)
        skip = self._training.found_inf()
        self._update()
        self._curve.record(self._training.validation_loss(), skip=skip)

    def end(self) -> None:
        pass


class _Closure(_BeforeUpdate):
    """The loss that a step with a closure finds first, or the validation loss after it."""

    def begin(self, window: list[Any]) -> None:
        self._driver.before_step()
        loss = self._training.closure_step(window)
        self._driver.after_step()
        is_validated = self._training.valid is not None
        self._curve.record(self._training.validation_loss() if is_validated else loss)

    def end(self) -> None:
        pass


class _StepFunction:
    """The loss that the user's own training step returns, with the rate that the step used.

    A step in which the optimizer did not step adds no point.
    """

    def __init__(
        self, training: Training, driver: Driver, curve: LossCurve, reference: int
    ) -> None:
        assert training.step_fn is not None
        self._step_fn = training.step_fn
        self._ranks = training.ranks
        self._driver = driver
        self._curve = curve
        self._reference = reference

    def begin(self, window: list[Any]) -> None:
        self._driver.before_step()
        applied = self._driver.applied()
        loss = check_loss(self._step_fn(window[0]), needs_grad=False)
        self._driver.after_step()
        skip = (self._driver.applied() == applied).double().to(self._curve.device)
        rate = self._driver.rate_used(self._reference)
        self._curve.record(self._ranks.mean(loss.detach().to(self._curve.device)), rate, skip=skip)

    def end(self) -> None:
        pass

    def look_on(self, window: list[Any]) -> None:
        self.begin(window)

    def release(self) -> None:
        pass


def _make_point(
    training: Training, driver: Driver, curve: LossCurve, reference: int
) -> _BeforeUpdate | _StepFunction:
    if training.captures:
        return _Captured(training, driver, curve)
    if training.step_fn is not None:
        return _StepFunction(training, driver, curve, reference)
    if training.takes_closure:
        return _Closure(training, driver, curve)
    if training.valid is not None:
        return _Validated(training, driver, curve)
    return _BeforeUpdate(training, driver, curve)
