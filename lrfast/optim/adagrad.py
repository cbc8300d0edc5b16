"""Adagrad; the rule itself is csrc/core/rules/adagrad.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import StepOptions
from lrfast.schedules import Schedule


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """Adagrad; every argument is torch.optim.Adagrad's.

    It has no momentum: a schedule that cycles one changes its rates alone.

    Args:
        params: Parameters or param groups.
        lr: Rate per step, 0 or more.
        lr_decay: Decay of the rate with each step, 0 or more.
        weight_decay: L2 penalty, 0 or more.
        initial_accumulator_value: What the sums of squares start at, 0 or more.
        eps: Added to the denominator.
        foreach: Accepted and without meaning: there is one implementation.
        maximize: Whether to go up the gradient.
        differentiable: Must be False.
        fused: Accepted and without meaning: the step is always fused.
        schedule: Multiplies the rates, see :meth:`set_schedule`.
        **options: What the step does besides, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.Adagrad(layer.parameters(), lr=0.01)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", 2011.
    """

    _rule = "adagrad"

    def __init__(
        self,
        params: Any,
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
        schedule: Schedule | Sequence[Schedule | None] | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        self._set_up(schedule, options)

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        value = self.defaults["initial_accumulator_value"]
        is_complex = torch.is_complex(param)
        return (
            super()
            ._new_state(name, param, dtype)
            .fill_(complex(value, value) if is_complex else value)
        )
