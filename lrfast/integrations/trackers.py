"""Fine-tuning runs and range tests in TensorBoard, W&B and whatever else logs numbers.

Needs nothing by itself: a tracker is a function of a dict of numbers and a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lrfast._utils.async_copy import AsyncHostQueue
from lrfast.finetune import Callback, FineTuner
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.range_test import RangeTest

Log = Callable[[Mapping[str, float], int], None]


class ScalarWriter(Protocol):
    """What ``torch.utils.tensorboard.SummaryWriter`` offers."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Write one number."""


class Run(Protocol):
    """What ``wandb.init()`` returns, and what is like it."""

    def log(self, data: dict[str, Any], step: int) -> object:
        """Write some numbers."""


def to_tensorboard(writer: ScalarWriter) -> Log:
    """Return a tracker that writes each number under its name as the tag."""

    def log(values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)

    return log


def to_run(run: Run) -> Log:
    """Return a tracker that calls ``run.log(values, step=step)``."""

    def log(values: Mapping[str, float], step: int) -> None:
        run.log(dict(values), step=step)

    return log


class Tracking(Callback):
    """Has a :class:`lrfast.FineTuner` log losses, rates and metrics while it trains.

    Losses and rates are read once they have arrived: nothing waits for the device, and with steps
    in flight a number is logged a little later, with the step that it belongs to. Steps count on
    from stage to stage.

    Args:
        log: The tracker.
        every: Steps from one log of loss and rates to the next, 1 or more.

    Raises:
        ValueError: If ``every`` is no whole number of 1 or more.

    Example:
        >>> seen = {}
        >>> tracking = Tracking(lambda values, step: seen.update({step: values}), every=10)
    """

    def __init__(self, log: Log, every: int = 10) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number, 1 or more, got {every!r}")
        self._log = log
        self._every = every
        self._reader = AsyncHostQueue()
        self._before = 0  # steps of earlier stages

    def on_fit_begin(self, tuner: FineTuner) -> None:
        """Note how many steps there were before."""
        self._before = sum(len(stage.losses) for stage in tuner.history.stages)

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        """Ask for what is to be logged, and log what has arrived."""
        if step % self._every == 0:
            optimizer = tuner.optimizer
            values = [loss]
            if isinstance(optimizer, FusedOptimizer):
                values += optimizer.last_rates.unbind()
            self._reader.put(self._before + step, values)
        self._send(wait=False)

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        """Log what validation found."""
        found = {name: value for name, value in row.items() if name != "step"}
        if found:
            self._log(found, self._before + int(row["step"]))

    def on_fit_end(self, tuner: FineTuner) -> None:
        """Wait for the last numbers."""
        self._send(wait=True)

    def _send(self, wait: bool) -> None:
        for step, (loss, *rates) in self._reader.ready(wait):
            self._log({"loss": loss, **{f"lr_{g}": rate for g, rate in enumerate(rates)}}, step)


def log_range_test(result: RangeTest, log: Log) -> None:
    """Log a range test, point by point: "range_test/lr", "/loss" and "/smoothed"."""
    for point, (lr, loss, smoothed) in enumerate(
        zip(result.lrs.tolist(), result.losses.tolist(), result.smoothed.tolist(), strict=True)
    ):
        values = {"lr": lr, "loss": loss, "smoothed": smoothed}
        log({f"range_test/{name}": value for name, value in values.items()}, point)
