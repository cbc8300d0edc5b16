"""Static batches: the tensors that a CUDA graph reads its inputs from, which stay in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrfast.training._data import with_items


class BatchMismatch(ValueError):
    """A batch is not of the kind that was captured; the message says where and how."""


def make_static(value: Any, device: torch.device) -> Any:
    """Return a copy of a batch, with the same containers, that later batches are copied into."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=device, requires_grad=False).copy_(value.detach())
    if isinstance(value, Mapping | list | tuple):
        return with_items(value, partial(make_static, device=device))
    if value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype):
        return value
    raise TypeError(
        "example_batch must be made of dicts, lists, tuples, tensors, numbers and strings, got "
        f"{type(value).__name__}"
    )


def copy_in(static: Any, given: Any) -> None:
    """Copy a batch's tensors, asynchronously from a GPU or pinned memory, if it is alike."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(static, Tensor):
        if not isinstance(given, Tensor):
            raise BatchMismatch(f": it was a tensor, got {type(given).__name__}")
        if given.shape != static.shape or given.dtype != static.dtype:
            raise BatchMismatch(
                f": it was {_kind(static)}, got {_kind(given)}; a loader with drop_last=True gives "
                "batches of one size"
            )
        # To the CPU it would be read too early.
        static.copy_(given.detach(), non_blocking=static.is_cuda)
    elif type(static) is not type(given):
        raise BatchMismatch(f": it was {type(static).__name__}, got {type(given).__name__}")
    elif isinstance(static, Mapping):
        if static.keys() != given.keys():
            raise BatchMismatch(f": its keys were {list(static)}, got {list(given)}")
        pairs = [(key, static[key], given[key]) for key in static]
    elif isinstance(static, list | tuple):
        if len(static) != len(given):
            raise BatchMismatch(f": its length was {len(static)}, got {len(given)}")
        pairs = list(zip(range(len(static)), static, given, strict=True))
    elif not (static is given or (static == given) is True):
        raise BatchMismatch(f": it is no tensor and was {static!r}, got {given!r}")
    for key, own, item in pairs:
        try:
            copy_in(own, item)
        except BatchMismatch as error:
            raise BatchMismatch(f"[{key!r}]{error}") from None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
