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


class ScheduleFree(torch.optim.Optimizer):
    """The step of schedulefree's two optimizers in training mode, counted for each parameter."""

    def __init__(
        self, params: Any, lr: float | Tensor, *, foreach: bool | None = None, **options: Any
    ) -> None:
        ignored = {"foreach": foreach, "train_mode": True, "differentiable": False}
        super().__init__(params, {"lr": lr, **options, **ignored})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(group, param, torch.view_as_real if param.is_complex() else _same)
        return loss

    def _step(self, group: dict[str, Any], param: Tensor, real: Any) -> None:
        state = self.state[param]
        if not state:
            sums = {name: param.new_zeros((), dtype=torch.float64) for name in _SUMS}
            state |= {"step": torch.tensor(0.0), **sums, "z": param.detach().clone()}
        y, z, direction = real(param), real(state["z"]), real(param.grad)
        beta, step = group.get("momentum"), float(state["step"]) + 1
        if beta is None:
            beta, beta2 = group["betas"]
            square = real(state.setdefault("exp_avg_sq", torch.zeros_like(param)))
            square.mul_(beta2).addcmul_(direction, direction, value=1 - beta2)
            direction = direction / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        direction = direction + group["weight_decay"] * y
        warm_up = min(1.0, step / group["warmup_steps"]) if group["warmup_steps"] else 1.0
        lr = float(group["lr"]) * warm_up
        largest = max(lr, float(state["lr_max"]))
        weight = step ** group["r"] * largest ** group["weight_lr_power"]
        total = float(state["weight_sum"]) + weight
        share = weight / total if total else 0.0
        y.lerp_(z, share).add_(direction, alpha=-lr * (1 - beta * (1 - share)))
        z.sub_(direction, alpha=lr)
        for name, value in zip(_SUMS, (total, largest), strict=True):
            state[name].fill_(value)
        state["step"] += 1


_SUMS = ("weight_sum", "lr_max")


_OWN: dict[str, Any] = {"weight_decay": 0, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}


class AdamWScheduleFree(ScheduleFree):
    """With the package's defaults."""

    def __init__(self, params: Any, lr: float | Tensor = 0.0025, **options: Any) -> None:
        super().__init__(params, lr, **{"betas": (0.9, 0.999), "eps": 1e-8, **_OWN, **options})


class SGDScheduleFree(ScheduleFree):
    """With the package's defaults."""

    def __init__(self, params: Any, lr: float | Tensor = 1.0, **options: Any) -> None:
        super().__init__(params, lr, **{"momentum": 0.9, **_OWN, **options})


def _same(tensor: Tensor) -> Tensor:
    return tensor
