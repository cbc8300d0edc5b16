"""Adam and AdamW; the rule of both is csrc/core/rules/adam.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import StepOptions
from lrfast.schedules import Schedule


class Adam(FusedOptimizer, torch.optim.Adam):
    """Adam; every argument is torch.optim.Adam's.

    While a schedule cycles beta1, bias correction uses the product of the betas that were used,
    where torch uses the current beta's power.

    Args:
        params: Parameters or param groups.
        lr: Rate per step, 0 or more.
        betas: Decay of the averages of the gradient and of its square, in [0, 1).
        eps: Added to the denominator.
        weight_decay: L2 penalty, 0 or more.
        amsgrad: Whether to divide by the largest average so far.
        foreach: Accepted and without meaning: there is one implementation.
        maximize: Whether to go up the gradient.
        capturable: Accepted and without meaning: the step never waits for the device.
        differentiable: Must be False.
        fused: Accepted and without meaning: the step is always fused.
        decoupled_weight_decay: Whether the decay is AdamW's.
        schedule: Multiplies the rates, see :meth:`set_schedule`.
        **options: What the step does besides, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.Adam(layer.parameters(), lr=1e-3, max_grad_norm=1.0)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> round(optimizer.grad_norm.item(), 4)
        1.7321

    Reference:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
    """

    _rule = "adam"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        schedule: Schedule | Sequence[Schedule | None] | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._set_up(schedule, options)


class AdamW(FusedOptimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay; every argument is torch.optim.AdamW's.

    While a schedule cycles beta1, bias correction uses the product of the betas that were used,
    where torch uses the current beta's power.

    Args:
        params: Parameters or param groups.
        lr: Rate per step, 0 or more.
        betas: Decay of the averages of the gradient and of its square, in [0, 1).
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay, 0 or more.
        amsgrad: Whether to divide by the largest average so far.
        maximize: Whether to go up the gradient.
        foreach: Accepted and without meaning: there is one implementation.
        capturable: Accepted and without meaning: the step never waits for the device.
        differentiable: Must be False.
        fused: Accepted and without meaning: the step is always fused.
        schedule: Multiplies the rates, see :meth:`set_schedule`.
        **options: What the step does besides, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.AdamW(
        ...     layer.parameters(), lr=1e-3, schedule=lrfast.schedules.one_cycle(total_steps=100)
        ... )
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.last_rates.tolist()
        [4e-05]

    Reference:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """

    _rule = "adam"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        schedule: Schedule | Sequence[Schedule | None] | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._set_up(schedule, options)
