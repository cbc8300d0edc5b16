"""RAdam; the rule itself is csrc/core/rules/radam.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class RAdam(FusedOptimizer, torch.optim.RAdam):
    """Adam with a rectified variance; every argument is torch.optim.RAdam's.

    The first updates, five with the default betas, do not divide by the size of gradients. Bias
    correction is that of :class:`Adam`.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-3.
        betas: Decays of the averages of gradient and square, in [0, 1); default (0.9, 0.999).
        eps: Added to the root of the average square, 0 or more; default 1e-8.
        weight_decay: Weight decay, 0 or more; default 0.
        decoupled_weight_decay: Whether the decay is AdamW's, not an L2 penalty; default False.
        foreach: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        capturable: Ignored; accepted for compatibility with torch.optim.
        differentiable: Must be False.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.RAdam(torch.nn.Linear(2, 1).parameters(), lr=1e-3)

    Reference:
        Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265.
    """

    _rule = "radam"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, betas,  # type: ignore[arg-type]  # torch takes tensors, too
            eps, weight_decay, decoupled_weight_decay, foreach=foreach,
            maximize=maximize, capturable=capturable, differentiable=differentiable,
        )  # fmt: skip
        self._set_up(schedule, options)
