"""Lion, which torch does not have; the rule itself is csrc/core/rules/lion.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class Lion(FusedOptimizer, torch.optim.Optimizer):
    """Steps by the sign of an interpolation between momentum and gradient.

    Use about a tenth of AdamW's learning rate and ten times its weight decay.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-4.
        betas: Momentum's weight in the step and decay after it, in [0, 1); default (0.9, 0.99).
        weight_decay: Decoupled weight decay, 0 or more; default 0.
        maximize: Whether to maximise the loss; default False.
        foreach: Ignored; accepted for compatibility with torch.optim.
        capturable: Ignored; accepted for compatibility with torch.optim.
        differentiable: Must be False.
        fused: Ignored; accepted for compatibility with torch.optim.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.Lion(torch.nn.Linear(2, 1).parameters(), lr=1e-4, weight_decay=0.1)

    Reference:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675.
    """

    _rule = "lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        super().__init__(params, {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize,
            "foreach": foreach, "capturable": capturable, "differentiable": differentiable,
            "fused": fused,
        })  # fmt: skip
        self._set_up(schedule, options)
