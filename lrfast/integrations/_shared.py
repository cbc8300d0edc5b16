"""Finds the optimizer inside what trainers wrap around it."""

from __future__ import annotations

from torch.optim import Optimizer

from lrfast.optim._optimizer import FusedOptimizer


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the innermost optimizer: Accelerate's and Lightning's wrappers hold one each."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def fused_optimizer(optimizer: Optimizer) -> FusedOptimizer:
    """Return the optimizer of lrfast in a wrapper.

    Raises:
        TypeError: If there is none.
    """
    inner = inner_optimizer(optimizer)
    if not isinstance(inner, FusedOptimizer):
        got = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise TypeError(
            f"optimizer must be one of lrfast, got {got}; lrfast.wrap takes over torch.optim's"
        )
    return inner
