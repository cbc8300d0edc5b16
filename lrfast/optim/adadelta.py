"""Adadelta; the rule itself is csrc/core/rules/adadelta.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class Adadelta(FusedOptimizer, torch.optim.Adadelta):
    """Adadelta; every argument is torch.optim.Adadelta's.

    It has no momentum: of a schedule that cycles one it uses the learning rates only.

    Args:
        params: Parameters or param groups.
        lr: Factor on the update, 0 or more; default 1, the paper's update.
        rho: Decay of the averages of squares, in [0, 1]; default 0.9.
        eps: Added to both averages below the root, 0 or more; default 1e-6.
        weight_decay: L2 penalty, 0 or more; default 0.
        foreach: Ignored; accepted for compatibility with torch.optim.
        capturable: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        differentiable: Must be False.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.Adadelta(torch.nn.Linear(2, 1).parameters(), rho=0.95)

    Reference:
        Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701.
    """

    _rule = "adadelta"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, rho, eps, weight_decay, foreach, capturable=capturable, maximize=maximize,
            differentiable=differentiable,
        )  # fmt: skip
        self._set_up(schedule, options)
