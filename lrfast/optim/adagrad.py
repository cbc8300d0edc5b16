"""Adagrad; the rule itself is csrc/core/rules/adagrad.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """Adagrad; every argument is torch.optim.Adagrad's.

    It has no momentum: of a schedule that cycles one it uses the learning rates only.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-2.
        lr_decay: Decay of the learning rate with each step, 0 or more; default 0.
        weight_decay: L2 penalty, 0 or more; default 0.
        initial_accumulator_value: Start of the sums of squares, 0 or more; default 0.
        eps: Added to the denominator, 0 or more; default 1e-10.
        foreach: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        differentiable: Must be False.
        fused: Ignored; accepted for compatibility with torch.optim.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.Adagrad(torch.nn.Linear(2, 1).parameters(), lr=0.01)

    Reference:
        Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", 2011.
    """

    _rule = "adagrad"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, foreach,
            maximize=maximize, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._set_up(schedule, options)

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        value = self.defaults["initial_accumulator_value"]
        state = super()._new_state(name, param, dtype)
        return state.fill_(complex(value, value) if torch.is_complex(param) else value)
