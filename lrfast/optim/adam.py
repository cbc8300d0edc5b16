"""Adam and AdamW; the rule of both is csrc/core/rules/adam.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions


@checked_methods()
class Adam(FusedOptimizer, torch.optim.Adam):
    """Adam; every argument is torch.optim.Adam's.

    While a schedule cycles beta1, bias correction uses the product of the betas used so far; torch
    uses a power of the current beta.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-3.
        betas: Decays of the averages of gradient and square, in [0, 1); default (0.9, 0.999).
        eps: Added to the denominator, 0 or more; default 1e-8.
        weight_decay: L2 penalty, 0 or more; default 0.
        amsgrad: Whether to divide by the largest average so far; default False.
        foreach: Ignored; accepted for compatibility with torch.optim.
        maximize: Whether to maximise the loss; default False.
        capturable: Ignored; accepted for compatibility with torch.optim.
        differentiable: Must be False.
        fused: Ignored; accepted for compatibility with torch.optim.
        decoupled_weight_decay: Whether the decay is AdamW's; default False.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

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
        params: ParamsT,
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
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        self._set_up(schedule, options)


@checked_methods()
class AdamW(FusedOptimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay; every argument is torch.optim.AdamW's.

    Bias correction is that of :class:`Adam`.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1e-3.
        betas: Decays of the averages of gradient and square, in [0, 1); default (0.9, 0.999).
        eps: Added to the denominator, 0 or more; default 1e-8.
        weight_decay: Decoupled weight decay, 0 or more; default 0.01.
        amsgrad: Whether to divide by the largest average so far; default False.
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
        params: ParamsT,
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
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._set_up(schedule, options)
