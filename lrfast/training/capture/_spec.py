"""Parts of a captured training step, and the checks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrfast._utils.validation import is_int
from lrfast.curve import LossCurve, _CurveRecorder
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._data import StepFunction, check_loss
from lrfast.training._snapshot import Stateful
from lrfast.training._step import record_call


@dataclass
class CaptureSpec:
    """Parts of a captured step, most of them as :func:`lrfast.capture` takes them."""

    train_step: StepFunction
    optimizer: FusedOptimizer
    curve: LossCurve | None = None
    scaler: torch.amp.GradScaler | None = None
    others: Sequence[object] = ()
    generators: Sequence[torch.Generator] = ()
    warmup: int = 3
    recorder: _CurveRecorder | None = None  # the curve's, or used by train_step itself
    records_loss_factor: bool = False  # whether train_step reads that tensor

    def __post_init__(self) -> None:
        if self.curve is not None:
            self.recorder = _CurveRecorder(self.curve)

    def run(self, batch: object) -> Tensor:
        """Make one training step; what it launches may be recorded."""
        if self.curve is None:
            return check_loss(self.train_step(batch), needs_grad=False).detach()
        assert self.recorder is not None
        may_skip = self.optimizer._options.skip_nonfinite or (
            self.scaler is not None and self.scaler.is_enabled()
        )
        count = self._count if may_skip else None
        return record_call(self.train_step, batch, self.recorder, self._rates, count)

    def _rates(self) -> Tensor | None:
        """The learning rates that the step used, unless the curve has planned ones."""
        assert self.curve is not None and self.recorder is not None
        takes = self.recorder.takes_rates
        return self.optimizer.last_rates[: self.curve.width] if takes else None

    def _count(self) -> Tensor:
        """Steps that the optimizer has made, on the device."""
        engine = self.optimizer._engine
        assert engine is not None
        return engine.clocks()[0][1:]

    @property
    def device(self) -> torch.device:
        """Device of the parameters that train."""
        return self._trained()[0].device

    def parameters(self) -> list[Tensor]:
        """Return the optimizer's parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _trained(self) -> list[Tensor]:
        """Return the parameters that may train; all if there are none."""
        parameters = self.parameters()
        trained = [p for p in parameters if p.requires_grad or p.grad is not None]
        return [p for p in trained if p.device.type != "meta"] or parameters

    def graph_constants(self) -> tuple[object, ...]:
        """Return what a graph holds of a scaler's numbers."""
        if self.scaler is None:
            return ()
        scaler = self.scaler
        factors = scaler.get_growth_factor(), scaler.get_backoff_factor()
        return *factors, scaler.get_growth_interval(), scaler.is_enabled()

    def loss_factor(self) -> Tensor | None:
        """Return the factor of the optimizer's loss schedule if a graph holds its address."""
        return self.optimizer._loss_factor if self.records_loss_factor else None

    def check(self) -> None:
        """Check the arguments; TypeError or ValueError for the first that does not do."""
        if not isinstance(self.optimizer, FusedOptimizer):
            raise TypeError(
                f"optimizer must be one of lrfast's, got {type(self.optimizer).__name__}; "
                "lrfast.wrap takes one of torch.optim over"
            )
        if self.optimizer._optimizer_step_pre_hooks or self.optimizer._optimizer_step_post_hooks:
            raise ValueError(
                "optimizer must have no step hooks, which a graph would not call; remove them"
            )
        warmup = self.warmup
        if not is_int(warmup) or warmup < 1:
            raise ValueError(f"warmup must be a whole number of steps, 1 or more, got {warmup!r}")
        if not (self.scaler is None or isinstance(self.scaler, torch.amp.GradScaler)):
            got = type(self.scaler).__name__
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {got}")
        for index, other in enumerate(self.others):
            if not isinstance(other, Tensor | Stateful):
                raise TypeError(
                    f"others[{index}] must be a tensor or have state_dict and load_state_dict, got "
                    f"{type(other).__name__}"
                )
        trained = self._trained()
        devices = list(dict.fromkeys(param.device for param in trained))
        if len(devices) != 1:
            got = ", ".join(map(str, devices))
            raise ValueError(f"optimizer must have all parameters on one device, got {got}")
        if any(hasattr(param, "_local_tensor") for param in trained):
            raise ValueError("optimizer must hold whole parameters, got some that processes share")
        if self.curve is not None:
            self._check_curve(self.curve)

    def _check_curve(self, curve: LossCurve) -> None:
        if not isinstance(curve, LossCurve):
            raise TypeError(f"curve must be a lrfast.LossCurve, got {type(curve).__name__}")
        groups = len(self.optimizer.param_groups)
        assert self.recorder is not None
        if self.recorder.takes_rates and curve.width not in (1, groups):
            raise ValueError(
                f"curve must have width 1 or one rate per param group, {groups}, got {curve.width}"
            )
        if curve.device != self.device:
            raise ValueError(
                f"curve must be on the optimizer's device {self.device}, got {curve.device}"
            )
