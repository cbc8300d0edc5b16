"""Products of matrices in a step of Muon: each direction's nearest semi-orthogonal matrix."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

_CACHED = 2**19  # elements; larger stacks are up to 10 % slower than one matrix after another
_SETTINGS = ("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn", "ns_dtype")


class NewtonSchulz:
    """The products, as csrc/bindings/directions.h calls them between the two passes of a step."""

    @torch.no_grad()
    def __call__(self, stack: Tensor, groups: list[dict[str, Any]], outputs: int) -> None:
        """Make each matrix of a stack orthogonal, and scale it for its shape, in place.

        Args:
            stack: Matrices [count, rows, columns], of parameters of one shape.
            groups: The param group of each.
            outputs: First dimension of the parameters; the matrices may be transposed.
        """
        first = 0
        with torch.autocast(stack.device.type, enabled=False):
            for settings, alike in groupby(groups, key=_settings):
                part = stack[first : first + len(list(alike))]
                first += len(part)
                for fitting in part.split(_at_once(stack)):
                    _transform(fitting, outputs, *settings)

    def settings(self, param_groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """Return all that decides about the products of each group."""
        return [(group["rule"], *_settings(group)) for group in param_groups]


def _at_once(stack: Tensor) -> int:
    """Return how many matrices share a product: a CPU is slower where they leave its cache."""
    if stack.device.type != "cpu":
        return len(stack)
    return max(1, _CACHED // stack[0].numel())


def _settings(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(name) for name in _SETTINGS)


def _transform(
    stack: Tensor,
    outputs: int,
    coefficients: tuple[float, float, float],
    eps: float,
    steps: int,
    adjust_lr_fn: str | None,
    dtype: torch.dtype,
) -> None:
    rows, columns = stack.shape[-2:]
    is_tall = rows > columns  # the square matrices are of the short side; nothing is transposed
    x = stack.to(dtype, copy=True)
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=eps))
    a, b, c = coefficients
    for _ in range(steps):
        gram = torch.bmm(x.mT, x) if is_tall else torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x, polynomial) if is_tall else (polynomial, x)
        x = torch.baddbmm(x, *factors, beta=a)
    stack.copy_(x)
    inputs = rows * columns // outputs
    if adjust_lr_fn == "match_rms_adamw":
        stack.mul_(0.2 * math.sqrt(max(outputs, inputs)))
    elif outputs > inputs:
        stack.mul_(math.sqrt(outputs / inputs))
