"""Captured updates: one CUDA graph holds an update and the recording of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrfast.curve import LossCurve, _CurveRecorder
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._step import TrainerUpdate, Training, TrainStep, UpdateFirst
from lrfast.training.capture import CapturedStep
from lrfast.training.capture._spec import CaptureSpec


@dataclass
class CapturedTrainStep(UpdateFirst):
    """One update of a training in a CUDA graph, its loss recorded before it.

    ``record`` makes the update, too, which the device leaves out after a bad loss. The first
    micro-batches are captured before they are used. Others, such as the last ones of an epoch, run
    eagerly. The loss that is returned is overwritten by the next one.
    """

    def __post_init__(self) -> None:
        optimizer, scaler = self.training.optimizer, self.training.scaler
        assert isinstance(optimizer, FusedOptimizer) and isinstance(self.curve, LossCurve)
        recorder = _CurveRecorder(self.curve)
        self._eager = TrainStep(self.training, recorder, self.driver, self.lr, self.max_grad_norm)
        spec = CaptureSpec(
            self._record_and_update,
            optimizer,
            scaler=scaler,
            recorder=recorder,
            records_loss_factor=True,
        )
        self._captured = CapturedStep(spec, "auto")

    def record(self, micro_batches: list[Any]) -> Tensor:
        """Record the loss of the micro-batches, make the update, and return the loss."""
        return self._captured(micro_batches)

    def release(self) -> None:
        """Let the graph go."""
        self._captured.release()
        del self._captured  # a circle, which would keep the memory of a batch

    def _record_and_update(self, micro_batches: list[Any]) -> Tensor:
        loss = self._eager.record(micro_batches)
        self._eager.update()
        return loss


def check_optimizer(optimizer: object) -> None:
    """Check that an optimizer's steps can be captured; TypeError if not."""
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            f"capture=True needs an optimizer of lrfast, got {type(optimizer).__name__}; "
            "lrfast.wrap takes one of torch.optim over"
        )


def check_captures(training: Training) -> None:
    """Check that a training's updates can be captured; TypeError or ValueError if not."""
    if isinstance(training.step_fn, TrainerUpdate):
        raise ValueError("capture must be False inside a trainer, whose own step the host makes")
    check_optimizer(training.optimizer)
    for name in ("step_fn", "val_loader"):
        if getattr(training, name) is not None:
            raise ValueError(f"{name} must be left out with capture=True")
    if not training.ranks.is_alone:
        raise ValueError("capture must be False where several processes train together")
