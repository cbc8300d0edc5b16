"""Optimizers: torch.optim's classes with their step done by the engine, all groups in one launch.

The classes inherit constructor, checks, state_dict and hooks from torch.optim, so that they are
what the installed torch says they are; :mod:`lrfast._fused` replaces their ``step``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrfast._fused import FusedOptimizer
from lrfast.schedules import Schedule


class SGD(FusedOptimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum; every argument is torch.optim.SGD's.

    Args:
        params: Parameters or param groups.
        lr: Rate per step, 0 or more.
        momentum: Momentum factor, 0 or more.
        dampening: Dampening of the momentum.
        weight_decay: L2 penalty, 0 or more.
        nesterov: Whether to use Nesterov's momentum.
        maximize: Whether to go up the gradient.
        foreach: Accepted and without meaning: there is one implementation.
        differentiable: Must be False.
        fused: Accepted and without meaning: the step is always fused.
        schedule: Multiplies the rates, see :meth:`set_schedule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    _rule = "sgd"

    def __init__(
        self,
        params: Any,
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
        schedule: Schedule | Sequence[Schedule | None] | None = None,
    ) -> None:
        _check_options(differentiable)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        self._set_up(schedule)


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

    _rule = "adamw"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
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
    ) -> None:
        _check_options(differentiable)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable
        )
        self._set_up(schedule)


def _check_options(differentiable: bool) -> None:
    if differentiable:
        raise ValueError(
            "differentiable must be False: the fused step is not part of the autograd graph; use "
            "torch.optim for differentiable updates"
        )
