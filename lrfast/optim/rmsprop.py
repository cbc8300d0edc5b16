"""RMSprop; the rule itself is csrc/core/rules/rmsprop.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """RMSprop; every argument is torch.optim.RMSprop's.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-2.
        alpha: Decay of the average of the gradient's square, 0 or more; default 0.99.
        eps: Added to the denominator, 0 or more; default 1e-8.
        weight_decay: L2 penalty, 0 or more; default 0.
        momentum: Momentum factor, 0 or more; default 0.
        centered: Whether to divide by the gradient's standard deviation; default False.
        capturable: Ignored; accepted for compatibility with torch.optim.
        foreach: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        differentiable: Must be False.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.RMSprop(torch.nn.Linear(2, 1).parameters(), lr=0.01, centered=True)

    Reference:
        Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012.
    """

    _rule = "rmsprop"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize,
            differentiable,
        )  # fmt: skip
        self._set_up(schedule, options)
