"""What a captured training step is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrfast.curve import LossCurve
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._data import check_loss
from lrfast.training._snapshot import Stateful

TrainStep = Callable[[Any], Tensor]


class Parts:
    """What a captured step is made of; the arguments are those of :func:`lrfast.capture`."""

    def __init__(
        self,
        train_step: TrainStep,
        optimizer: FusedOptimizer,
        curve: LossCurve | None,
        scaler: torch.amp.GradScaler | None,
        others: list[object],
        generators: list[torch.Generator],
        warmup: int,
    ) -> None:
        self.train_step = train_step
        self.optimizer = optimizer
        self.curve = curve
        self.scaler = scaler
        self.others = others
        self.generators = generators
        self.warmup = warmup

    @property
    def device(self) -> torch.device:
        """The optimizer's."""
        device: torch.device = self.parameters()[0].device
        return device

    @property
    def may_skip(self) -> bool:
        """Whether the device decides if a step happens."""
        scales = self.scaler is not None and self.scaler.is_enabled()
        return scales or self.optimizer._options.skip_nonfinite

    def run(self, batch: Any, records: bool = True) -> Tensor:
        """Make one training step; what it launches may be recorded."""
        before = self._steps().clone() if records and self.curve and self.may_skip else None
        loss = check_loss(self.train_step(batch), needs_grad=False).detach()
        if records and self.curve is not None:
            skip = None if before is None else (self._steps() == before).double()
            planned = self.curve._planned
            rates = None if planned else self.optimizer.last_rates[: self.curve.width]
            self.curve._launch(loss, rates, skip)
        return loss

    def parameters(self) -> list[Tensor]:
        """Return the optimizer's."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def baked(self) -> tuple[object, ...]:
        """Return what a graph holds of a scaler's numbers."""
        if self.scaler is None:
            return ()
        scaler = self.scaler
        factors = scaler.get_growth_factor(), scaler.get_backoff_factor()
        return *factors, scaler.get_growth_interval(), scaler.is_enabled()

    def _steps(self) -> Tensor:
        engine = self.optimizer._engine
        assert engine is not None
        return engine.clocks()[0][1:]

    def check(self) -> None:
        """Check the arguments.

        Raises:
            TypeError, ValueError: For the first that does not do.
        """
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
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
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
        self._check_devices()

    def _check_devices(self) -> None:
        devices = list(dict.fromkeys(param.device for param in self.parameters()))
        if len(devices) != 1:
            got = ", ".join(map(str, devices))
            raise ValueError(f"optimizer must have all parameters on one device, got {got}")
        if any(hasattr(param, "_local_tensor") for param in self.parameters()):
            raise ValueError("optimizer must hold whole parameters, got some that processes share")
        curve, groups = self.curve, len(self.optimizer.param_groups)
        if curve is None:
            return
        if not isinstance(curve, LossCurve):
            raise TypeError(f"curve must be a lrfast.LossCurve, got {type(curve).__name__}")
        if not curve._planned and curve.width not in (1, groups):
            raise ValueError(
                f"curve must have width 1 or one rate per param group, {groups}, got {curve.width}"
            )
        if curve.device != devices[0]:
            raise ValueError(
                f"curve must be on the optimizer's device {devices[0]}, got {curve.device}"
            )
