"""Products of matrices in a step of Muon: each direction's nearest semi-orthogonal matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lrfast._utils.extension import extension
from lrfast.optim._state import ROWS, local_part

_CACHED = 2**19  # elements; larger stacks are up to 10 % slower than one matrix after another
_TINY = 1e-10  # added to what divides, as NorMuon's authors do
_SETTINGS = ("ns_coefficients", "eps", "ns_steps", "ns_dtype", "adjust_lr_fn")


class NewtonSchulz:
    """The products, as csrc/bindings/directions.h calls them between the two passes of a step."""

    @torch.no_grad()
    def __call__(
        self,
        stack: Tensor,
        groups: list[dict[str, Any]],
        params: list[Tensor],
        state: Mapping[Tensor, dict[str, Any]],
        outputs: int,
    ) -> bool:
        """Make each matrix of a stack orthogonal, and scale it for its shape, in place.

        Args:
            stack: Matrices [count, rows, columns], of parameters of one shape.
            groups: The param group of each.
            params: The parameter of each.
            state: The optimizer's.
            outputs: First dimension of the parameters; the matrices may be transposed.

        Returns:
            Whether the next step must find zeros where it makes no direction: a direction of zeros
            leaves the averages of its rows as they are, also in a captured step.
        """
        kinds = [
            (_settings(group), group.get("beta2"), _is_across(group, param))
            for group, param in zip(groups, params, strict=True)
        ]
        with torch.autocast(stack.device.type, enabled=False):
            for ((*settings, adjust), beta2, is_across), alike in groupby(
                range(len(kinds)), kinds.__getitem__
            ):
                places = list(alike)
                for first in range(0, len(places), _at_once(stack)):
                    fitting = places[first : first + _at_once(stack)]
                    part = stack[fitting[0] : fitting[-1] + 1]
                    directions = _orthogonal(part, *settings)
                    if beta2 is not None:
                        rows = [_rows_of(params[place], state) for place in fitting]
                        directions = _normalized(directions, rows, beta2, is_across)
                    part.copy_(directions)
                    _scale(part, outputs, adjust)
        return any(beta2 is not None for _, beta2, _ in kinds)

    def settings(self, param_groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """Return all that decides about the products of each group."""
        return [(group["rule"], group.get("beta2"), *_settings(group)) for group in param_groups]


def make_rows(param: Tensor) -> Tensor:
    """Return the first averages of a matrix's rows, [outputs, 1]; none has half the digits."""
    local = local_part(param)
    dtype = torch.float64 if local.dtype is torch.float64 else torch.float32
    return torch.zeros(local.shape[:1].numel(), 1, dtype=dtype, device=local.device)


def _rows_of(param: Tensor, state: Mapping[Tensor, dict[str, Any]]) -> Tensor:
    """Return the averages of a matrix's rows; of one that has never trained, new ones."""
    own = state.get(param)
    if own is None:
        return make_rows(param)
    if own.get(ROWS) is None:
        if param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "matrices have no averages of their rows yet, which cannot be made while a CUDA "
                "graph is captured: make a step before"
            )
        own[ROWS] = make_rows(param)
    rows: Tensor = own[ROWS]
    return rows


def _is_across(group: dict[str, Any], param: Tensor) -> bool:
    """Return whether a parameter's first dimension is the last of its matrix, if that matters."""
    if group.get("beta2") is None or param.shape[0] == 1:
        return False
    local = local_part(param)
    strides = extension().layout_strides(local)
    return bool(strides[0] != local.numel() // local.shape[0])


def _at_once(stack: Tensor) -> int:
    """Return how many matrices share a product: a CPU is slower where they leave its cache."""
    if stack.device.type != "cpu":
        return len(stack)
    return max(1, _CACHED // stack[0].numel())


def _settings(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(name) for name in _SETTINGS)


def _orthogonal(
    stack: Tensor,
    coefficients: tuple[float, float, float],
    eps: float,
    steps: int,
    dtype: torch.dtype,
) -> Tensor:
    # The square matrices are of the short side; nothing is transposed.
    is_tall = stack.shape[-2] > stack.shape[-1]
    x = stack.to(dtype, copy=True)
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=eps))
    a, b, c = coefficients
    for _ in range(steps):
        gram = torch.bmm(x.mT, x) if is_tall else torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x, polynomial) if is_tall else (polynomial, x)
        x = torch.baddbmm(x, *factors, beta=a)
    return x


def _normalized(x: Tensor, rows: list[Tensor], beta2: float, is_across: bool) -> Tensor:
    """Divide rows by the roots of their mean squares' averages, and keep the matrices' norms."""
    averages = torch.stack(rows)
    x = x.to(averages.dtype)
    norms = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    squares = x.square().mean(-2 if is_across else -1).unsqueeze(-1)
    averages = torch.where(norms > 0, averages.lerp(squares, 1 - beta2), averages)
    torch._foreach_copy_(rows, list(averages.unbind()))
    x = x / (averages.mT if is_across else averages).sqrt().add_(_TINY)
    scaled: Tensor = x * (
        norms / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).add_(_TINY)
    )
    return scaled


def _scale(stack: Tensor, outputs: int, adjust_lr_fn: str | None) -> None:
    """Scale matrices for their shape."""
    inputs = stack[0].numel() // outputs
    if adjust_lr_fn == "match_rms_adamw":
        stack.mul_(0.2 * math.sqrt(max(outputs, inputs)))
    elif outputs > inputs:
        stack.mul_(math.sqrt(outputs / inputs))
