"""Optimizers inside trainers' wrappers, LR-finder callbacks, clipping within the step."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrfast import suggest
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.optim import FusedOptimizer
from lrfast.range_test import RangeTest


def fused_optimizer(optimizer: Optimizer) -> FusedOptimizer:
    """Return the lrfast optimizer in a wrapper."""
    inner = inner_optimizer(optimizer)
    if not isinstance(inner, FusedOptimizer):
        got = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise TypeError(
            f"optimizer must be one of lrfast, got {got}; lrfast.wrap takes over torch.optim's"
        )
    return inner


class LRFinderBase:
    """Base of the LR-finder callbacks: keeps results and applies the suggested learning rate."""

    def __init__(self, rule: str | None = None) -> None:
        if rule is not None and rule != "verified":
            suggest.get(rule)
        self.results: list[RangeTest] = []
        self._rule = rule

    def _take(self, result: RangeTest, optimizer: Optimizer) -> None:
        """Keep a result, and apply its learning rate if there is one."""
        self.results.append(result)
        if result.suggestions[self._rule or result.rule].lr is not None:
            result.apply(optimizer, self._rule)


class StepClipper:
    """Clips within an optimizer's step, for trainers that ask for the norm before the step."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self._optimizer = optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self._norm = torch.full((), math.nan, device=device)
        optimizer.register_step_post_hook(self._take)

    def covers(self, params: list[Tensor]) -> bool:
        """Return whether the optimizer updates all of these parameters that are trained."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return all(id(param) in held for param in params if param.requires_grad)

    def clip(self, max_norm: float) -> Tensor:
        """Let the next step clip, and return the tensor [] that it fills with the norm before.

        An infinite ``max_norm`` leaves the optimizer's own ``max_grad_norm``.
        """
        own = self._optimizer.max_grad_norm
        limit = max_norm if math.isfinite(max_norm) else own
        if limit is None:
            limit = sys.float_info.max  # clips nothing; None would not measure either
        if own != limit:  # setting it makes the engine's tables again
            self._optimizer.max_grad_norm = limit
        return self._norm

    def _take(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if (norm := self._optimizer.grad_norm) is not None:
            self._norm.copy_(norm)
