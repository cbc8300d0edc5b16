"""Optimizers of torch's interface to compare with, where torch.optim's own do not reach.

Test-only; imports nothing of lrfast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NAdam(torch.optim.NAdam):
    """torch's, with the product of the momenta in float64.

    torch keeps it in float32 even for float64 parameters: 6e-8 off, where runs are compared to
    1e-12. peers/test_torch_table.py compares with torch's own class.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *lists: Any) -> Any:
        *_, products, _ = lists
        result = super()._init_group(group, params, *lists)
        for index, param in enumerate(params):
            products[index] = self.state[param]["mu_product"] = products[index].double()
        return result


class Adagrad(torch.optim.Adagrad):
    """torch's, which also knows parameters that came, or lost their states, after its constructor.

    torch makes the states in the constructor alone, and fails at a group that was added later.
    """

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        for param in group["params"]:
            if param.grad is not None and not self.state[param]:
                start = group["initial_accumulator_value"]
                self.state[param]["step"] = torch.tensor(0.0)
                self.state[param]["sum"] = torch.full_like(param, start)
        return super()._init_group(group, *lists)


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al., "Symbolic Discovery of Optimization Algorithms", 2302.06675."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        ignored = {"foreach": foreach, "capturable": capturable, "fused": fused}
        super().__init__(params, defaults | ignored | {"differentiable": differentiable})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                grad = -param.grad if group["maximize"] else param.grad
                momentum = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                mixed = momentum * beta1 + grad * (1 - beta1)
                # torch's sign of NaN is 0, which would hide the NaN; the paper's (numpy's) is NaN.
                update = torch.where(mixed.isnan(), mixed, mixed.sign())
                param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
                momentum.mul_(beta2).add_(grad * (1 - beta2))
        return loss
