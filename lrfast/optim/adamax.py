"""Adamax; the rule itself is csrc/core/rules/adamax.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class Adamax(FusedOptimizer, torch.optim.Adamax):
    """Adam by the infinity norm; every argument is torch.optim.Adamax's.

    Bias correction is that of :class:`Adam`.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 2e-3.
        betas: Decays of the average gradient and of the largest one, in [0, 1); default
            (0.9, 0.999).
        eps: Added to the size of each gradient, 0 or more; default 1e-8.
        weight_decay: L2 penalty, 0 or more; default 0.
        foreach: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        differentiable: Must be False.
        capturable: Ignored; accepted for compatibility with torch.optim.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.Adamax(torch.nn.Linear(2, 1).parameters(), lr=2e-3)

    Reference:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, section 7.1.
    """

    _rule = "adamax"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, betas,  # type: ignore[arg-type]  # torch takes tensors, too
            eps, weight_decay, foreach,
            maximize=maximize, differentiable=differentiable, capturable=capturable,
        )  # fmt: skip
        self._set_up(schedule, options)
