"""An update with its point on the curve as one captured step; for range tests and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lrfast.curve import LossCurve
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._step import Training
from lrfast.training.capture import CapturedStep, capture


class CapturedUpdate:
    """Makes updates of a training, each loss recorded before its update, in a CUDA graph.

    The first window is captured before it is used. Windows of another kind, such as the last one of
    an epoch, run eagerly.

    Args:
        training: What trains.
        curve: Records the losses; the optimizer obeys its flag.
        rate: Returns what is recorded with a loss where no rates are planned: float64 on the
            device, or None.
    """

    def __init__(
        self,
        training: Training,
        curve: LossCurve,
        rate: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self._training = training
        self._curve = curve
        self._rate = rate
        self._step: CapturedStep | None = None

    def __call__(self, window: list[Any]) -> Tensor:
        """Make an update with a window of batches; return its loss, which the next overwrites."""
        training, curve = self._training, self._curve
        may_skip = training.scaler is not None and training.scaler.is_enabled()
        curve._check_room(may_skip)
        if self._step is None:
            assert isinstance(training.optimizer, FusedOptimizer)
            self._step = capture(
                self._update,
                training.optimizer,
                window,
                scaler=training.scaler,
                others=curve._memory(),
                recapture="auto",
            )
        loss = self._step(window)
        curve._count(may_skip)
        return loss

    def release(self) -> None:
        """Let the graph go."""
        if self._step is not None:
            self._step.release()
            self._step = None

    def _update(self, window: list[Any]) -> Tensor:
        loss = self._training.backward(window)
        self._curve._launch(loss, self._curve._row(self._rate()), self._training.found_inf())
        self._training.update()
        return loss


def check_optimizer(optimizer: object) -> None:
    """Check that an optimizer's steps can be captured.

    Raises:
        TypeError: If not.
    """
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            f"capture=True needs an optimizer of lrfast, got {type(optimizer).__name__}; "
            "lrfast.wrap takes one of torch.optim over"
        )


def check_captures(training: Training) -> None:
    """Check that a training's updates can be captured.

    Raises:
        TypeError, ValueError: If not.
    """
    check_optimizer(training.optimizer)
    clashes = {"step_fn": training.step_fn, "valid": training.valid}
    for name, given in clashes.items():
        if given is not None:
            raise ValueError(f"{name} must be left out with capture=True")
    if not training.ranks.is_alone:
        raise ValueError("capture must be False where several processes train together")
