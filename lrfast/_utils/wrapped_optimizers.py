"""Optimizers that Accelerate and Lightning wrap, recognised without an import of either."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

_WRAPPING = ("accelerate", "lightning", "pytorch_lightning")


def inner_optimizer(optimizer: Any) -> Optimizer:
    """Return the innermost optimizer of Accelerate's and Lightning's wrappers; others as they are.

    Wrappers of other libraries may add to the step, as Lookahead does.
    """
    while any(each.__module__.partition(".")[0] in _WRAPPING for each in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    inner: Optimizer = optimizer
    return inner
