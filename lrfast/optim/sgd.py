"""Stochastic gradient descent; the rule itself is csrc/core/rules/sgd.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class SGD(FusedOptimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum; every argument is torch.optim.SGD's.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-3.
        momentum: Momentum factor, 0 or more; default 0.
        dampening: Dampening of the momentum; default 0.
        weight_decay: L2 penalty, 0 or more; default 0.
        nesterov: Whether to use Nesterov's momentum; default False.
        maximize: Whether to maximise the loss; default False.
        foreach: Ignored; accepted for compatibility with torch.optim.
        differentiable: Must be False.
        fused: Ignored; accepted for compatibility with torch.optim.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1, momentum=0.9)

    Reference:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    _rule = "sgd"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize,
            foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._set_up(schedule, options)
