"""Fine-tuning runs and range tests in TensorBoard, W&B and other loggers.

A tracker is a function of a dict of numbers and a step, so that no library is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lrfast._utils.arguments import checked
from lrfast._utils.async_copy import AsyncHostQueue
from lrfast._utils.validation import check_count
from lrfast.finetune import Callback, FineTuner
from lrfast.optim import FusedOptimizer
from lrfast.range_test import RangeTest

__all__ = ["Log", "Run", "ScalarWriter", "Tracking", "log_range_test", "to_run", "to_tensorboard"]

Log = Callable[[Mapping[str, float], int], None]


class ScalarWriter(Protocol):
    """Interface of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Write one number."""


class Run(Protocol):
    """Interface of the run that ``wandb.init()`` returns."""

    def log(self, data: dict[str, Any], step: int) -> object:
        """Write some numbers."""


@checked
def to_tensorboard(writer: ScalarWriter) -> Log:
    """Return a tracker that writes each number under its name as the tag."""

    def log(values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)

    return log


@checked
def to_run(run: Run) -> Log:
    """Return a tracker that calls ``run.log(values, step=step)``."""

    def log(values: Mapping[str, float], step: int) -> None:
        run.log(dict(values), step=step)

    return log


class Tracking(Callback):
    """Logs losses, learning rates and metrics while a :class:`lrfast.FineTuner` trains.

    Nothing synchronises: losses and learning rates are logged once they have arrived on the host,
    with the step that they belong to. Steps count on from stage to stage.

    Args:
        log: The tracker.
        every: Steps from one log of loss and learning rates to the next, 1 or more; default 10.

    Raises:
        ValueError: If ``every`` is not a whole number of 1 or more.

    Example:
        >>> seen = {}
        >>> tracking = Tracking(lambda values, step: seen.update({step: values}), every=10)
    """

    @checked
    def __init__(self, log: Log, every: int = 10) -> None:
        self._log, self._every = log, check_count("every", every)
        self._reader = AsyncHostQueue()
        self._before = 0  # steps of earlier stages

    def on_fit_begin(self, tuner: FineTuner) -> None:
        """Count the steps of the stages before."""
        self._before = sum(len(stage.losses) for stage in tuner.history.stages)

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        """Queue copies every so many steps, and log those that have arrived."""
        if step % self._every == 0:
            optimizer = tuner.optimizer
            rates = optimizer.last_rates if isinstance(optimizer, FusedOptimizer) else ()
            self._reader.put(self._before + step, [loss, *rates])
        self._send(wait=False)

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        """Log the validation's results."""
        if found := {name: value for name, value in row.items() if name != "step"}:
            self._log(found, self._before + int(row["step"]))

    def on_fit_end(self, tuner: FineTuner) -> None:
        """Log the last numbers, with a synchronisation."""
        self._send(wait=True)

    def _send(self, wait: bool) -> None:
        for step, (loss, *rates) in self._reader.ready(wait):
            self._log({"loss": loss, **{f"lr_{g}": rate for g, rate in enumerate(rates)}}, step)


@checked
def log_range_test(result: RangeTest, log: Log) -> None:
    """Log a range test, point by point: "range_test/lr", "/loss" and "/smoothed"."""
    columns = {"lr": result.lrs, "loss": result.losses, "smoothed": result.smoothed}
    for point in range(len(result.lrs)):
        log({f"range_test/{name}": float(each[point]) for name, each in columns.items()}, point)
