"""Clipping inside the step, for trainers that ask for the norm before it."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrfast.optim._optimizer import FusedOptimizer


class NormOfStep:
    """Has an optimizer clip in its step, and holds the norm that it finds there.

    Args:
        optimizer: Clips from now on as :meth:`clip` says.
    """

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self._optimizer = optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self.value: Tensor = torch.full((), math.nan, device=device)
        optimizer.register_step_post_hook(self._take)

    def covers(self, params: list[Tensor]) -> bool:
        """Whether the optimizer updates all of these that are trained."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return all(id(param) in held for param in params if param.requires_grad)

    def clip(self, max_norm: float) -> Tensor:
        """Let the coming step clip to ``max_norm``; infinity: as the optimizer was told otherwise.

        Returns:
            One float32 on the device, which the step fills with the norm before clipping.
        """
        own = self._optimizer.max_grad_norm
        limit = max_norm if math.isfinite(max_norm) else own
        if limit is None:
            limit = sys.float_info.max  # clips nothing; None would not measure either
        if own != limit:  # setting it binds all parameters anew
            self._optimizer.max_grad_norm = limit
        return self.value

    def _take(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        norm = self._optimizer.grad_norm
        if norm is not None:
            self.value.copy_(norm)
