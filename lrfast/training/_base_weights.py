"""Frozen weights beside trained adapters, which a snapshot compares and does not copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast.groups._lora import adapted_layer, adapter_parameters

_SMALL: Final = 4096  # bytes of a tensor that is copied nevertheless


class BaseWeights:
    """The large frozen weights of a model that trains LoRA adapters; none of other models.

    They are most of its memory, and no gradient changes them. What a step may change is left out:
    the frozen twin of a module around all trained adapters, such as a teacher.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = [name for name, p in adapter_parameters(model).items() if p.requires_grad]
        self._tensors = dict(_frozen(model, trained)) if trained else {}
        # bitsandbytes holds its 8-bit weights by a second name.
        self._places = {_place(tensor) for tensor in self._tensors} - {None}
        self._before = list(map(_mark, self._tensors))
        self._after = self._before

    def __contains__(self, tensor: object) -> bool:
        if not self._tensors or not isinstance(tensor, Tensor):
            return False
        return tensor in self._tensors or _place(tensor) in self._places

    def compare(self) -> None:
        """Look at the weights again, without a synchronisation."""
        self._after = list(map(_mark, self._tensors))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which weights had changed when they were compared, in a sentence; synchronises."""
        marks = zip(self._tensors.values(), self._before, self._after, strict=True)
        changed = [name for name, before, after in marks if not _alike(before, after)]
        if not changed:
            return ()
        others = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
        return (
            f"model.{changed[0]}{others} changed and cannot be restored: frozen weights beside "
            "trained adapters are not copied",
        )


def _frozen(model: nn.Module, trained: list[str]) -> Iterator[tuple[Tensor, str]]:
    """Yield the large frozen parameters, and what adapted layers hold packed in buffers."""
    paths = [name.split(".")[:-1] for name in trained]
    same = takewhile(lambda parts: parts[0] == parts[1], zip(min(paths), max(paths), strict=False))
    shared = [part for part, _ in same]
    around = [model.get_submodule(".".join(shared[:end])) for end in range(len(shared) + 1)]
    names = {type(module): dict(module.named_parameters()).keys() for module in around}
    twins: set[Tensor] = set()
    for module in model.modules():
        own = dict(module.named_parameters()) if type(module) in names else {}
        if own.keys() == names.get(type(module)) and not any(p.requires_grad for p in own.values()):
            twins.update(own.values(), module.buffers())
    for name, p in model.named_parameters():
        if not p.requires_grad and p.grad is None and _is_large(p) and p not in twins:
            yield p, name
    for path in dict.fromkeys(map(adapted_layer, trained)):
        for name, buffer in model.get_submodule(path or "").named_buffers(path or ""):
            is_number = buffer.is_floating_point() or buffer.is_complex()
            if not is_number and _is_large(buffer) and buffer not in twins:
                yield buffer, name


def _is_large(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.device.type == "meta":
        return False
    return tensor.numel() * tensor.element_size() > _SMALL


def _place(tensor: Tensor) -> tuple[int, int] | None:
    """Return where a tensor's memory begins, and its size; None of one without, or too small."""
    with suppress(Exception):  # packed weights have none of their own
        if _is_large(tensor) and tensor.is_contiguous() and (address := tensor.data_ptr()):
            return address, tensor.nbytes
    return None


def _mark(tensor: Tensor) -> list[Any]:
    """Return what tells, without a copy, whether a tensor has changed since.

    Writing through ``.data`` leaves the version as it is. A hash alone is blind to a change of
    equal elements.
    """
    mark: list[Any] = [None if tensor.is_inference() else tensor._version]
    with suppress(Exception):  # packed weights and some dtypes have neither
        values = tensor.detach()
        mark += [torch.hash_tensor(values), values[(0,) * values.dim()].clone()]
    return mark


def _alike(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=False)
    return all(bool((one == other) | (one != one)) for one, other in pairs)
