"""Tensors of optimizer state in the form that the engine needs: shape, dtype, device, layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrfast._extension import extension

# States that have a dtype of their own; all others are moments of the gradient.
NOT_MOMENTS = ("step", "beta1_product", "mu_product", "ema")


def zeros_like(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in the memory layout that the engine walks, which is dense even if ``param`` is not."""
    if hasattr(param, "_local_tensor"):  # a DTensor's state is one too, for its checkpoints
        return torch.zeros_like(param, dtype=dtype)
    strides = extension().layout_strides(param)
    zeros = torch.empty_strided(param.shape, strides, dtype=dtype, device=param.device)
    return zeros.zero_()


def usable(name: str, value: Any, param: Tensor, dtype: torch.dtype) -> Tensor:
    """A state in its parameter's shape, device and memory layout.

    Raises:
        ValueError: If it has another shape.
    """
    if not isinstance(value, Tensor) or value.shape != param.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"state {name!r} must have its parameter's shape {tuple(param.shape)}, got {got}"
        )
    return zeros_like(param, dtype).copy_(value)


def scalar(value: Any, param: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a tensor [] on its parameter's device, without waiting for that."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(param.device, dtype)
    return torch.full((), value, dtype=dtype, device=param.device)


def average_dtype(param: Tensor) -> torch.dtype:
    """What a weight's average is kept in: half types would lose most of its steps."""
    is_half = param.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_half else param.dtype
