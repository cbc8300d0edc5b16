"""A copy, on the device, of the best model so far."""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast._utils.decode import decode_fields, optional
from lrfast._utils.validation import check_dict, check_float, check_tensor, short_repr
from lrfast.finetune._metrics import check_monitored, is_better, mode_of
from lrfast.training._snapshot import dense_view


class Best:
    """A copy of the parameters and buffers of the best epoch."""

    def __init__(self, monitor: str, mode: Literal["min", "max"] | None) -> None:
        self.monitor = monitor
        self.mode = mode_of(monitor, mode, "best_mode")
        self.value: float | None = None
        self._tensors: dict[str, Tensor] = {}

    def consider(self, model: nn.Module, found: dict[str, float]) -> None:
        """Copy the model if validation found a new best; no synchronisation."""
        value = found[check_monitored(self.monitor, found)]
        if not is_better(value, self.value, self.mode):
            return
        self.value = value
        for name, values in named_tensors(model).items():
            if name in self._tensors:
                self._tensors[name].copy_(values.detach())
            elif (copied := _copied(values)) is not None:
                self._tensors[name] = copied

    def restore(self, model: nn.Module) -> None:
        """Write the copy into the model's tensors."""
        if not self._tensors:
            raise ValueError("restore_best needs a validated epoch, got none so far")
        with torch.no_grad():
            for name, values in named_tensors(model).items():
                if name in self._tensors:
                    own, best = dense_view(values), self._tensors[name]
                    own.copy_(best if own is values else best[tuple(map(slice, own.shape))])

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the copy."""
        return {"value": self.value, "tensors": dict(self._tensors)}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Load what :meth:`state_dict` returned; if it is of another model, nothing changes."""
        checks = {"value": optional(check_float), "tensors": check_dict}
        value, saved = decode_fields("the best model", state, checks).values()
        own = named_tensors(model)
        lacking = {name: own[name] for name in own.keys() - saved.keys()}
        if saved and (saved.keys() - own.keys() or any(map(_is_plain, lacking.values()))):
            raise ValueError(
                f"tensors must be {short_repr(list(own))}, got {short_repr(list(saved))}"
            )
        for name, values in saved.items():
            check_like(name, values, own[name], own[name].dtype)
        if (value is None) != (not saved):
            raise ValueError("the best model must hold a value and its tensors, or neither")
        self.value = value
        self._tensors = {n: t.detach().to(own[n].device, copy=True) for n, t in saved.items()}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, those outside the state dict included."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _copied(values: Tensor) -> Tensor | None:
    """Return a copy, or None of a lazy or packed parameter, which no step changes."""
    if is_lazy(values):
        return None
    try:
        return values.detach().clone()
    except NotImplementedError:
        return None


def shape_of(tensor: Tensor) -> list[int] | None:
    """Return the shape of a tensor; None of lazy and nested ones, which have none."""
    return None if is_lazy(tensor) or tensor.is_nested else list(tensor.shape)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has a number in memory for each of its elements."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return False
    has_values = tensor.device.type != "meta" and not is_lazy(tensor)
    return has_values and tensor.nbytes <= tensor.untyped_storage().nbytes()


def check_like(name: str, values: Any, own: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of a checkpoint if it has the shape of the model's, and the type if any."""
    is_alike = isinstance(values, Tensor) and values.layout is own.layout
    if not _is_plain(own) and is_alike and values.dtype is own.dtype:
        return values  # type: ignore[no-any-return]  # torch checks the rest
    if check_tensor(name, values, dtype).shape != own.shape:
        raise ValueError(f"{name} must be {short_repr(own)}, got {short_repr(values)}")
    return values  # type: ignore[no-any-return]
