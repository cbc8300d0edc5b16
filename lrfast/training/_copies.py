"""Copies of tensors, generators and the containers that hold them, to be put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def owned(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` with memory of its own; copy_ refuses expanded dimensions."""
    if tensor.layout is torch.strided:
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def bytes_of(tensor: Tensor) -> int:
    """Return the size of a tensor's memory, sparse ones included."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.nbytes


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class Copies:
    """Copies of nested containers, their tensors and generators, each object once.

    A container's copy is shallow: what it held is the same object afterwards, and is itself put
    back by its own entry. So sharing, cycles and identities need no further care. The first of
    each pair is the original, held so that its id stays taken.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._dicts: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self._lists: dict[int, tuple[list[Any], list[Any]]] = {}

    def keep(self, value: object) -> None:
        """Copy `value` and everything in it; values of other types are ignored."""
        key = id(value)
        if isinstance(value, Tensor):
            if key not in self._tensors:
                self._tensors[key] = (value, self._copy(owned(value)))
        elif isinstance(value, torch.Generator):
            self._generators[key] = (value, value.get_state())
        elif isinstance(value, dict):
            if key not in self._dicts:
                self._dicts[key] = (value, dict(value))
                for item in value.values():
                    self.keep(item)
        elif isinstance(value, list):
            if key not in self._lists:
                self._lists[key] = (value, value[:])
                for item in value:
                    self.keep(item)
        elif isinstance(value, tuple):
            for item in value:
                self.keep(item)

    def _copy(self, tensor: Tensor) -> Tensor:
        if not self._on_host or tensor.device.type == "cpu":
            return tensor.clone()
        # Pinned, so that neither direction waits: the copies queue behind what uses the tensor.
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return copy.copy_(tensor, non_blocking=True)

    def put_back(self) -> None:
        """Give everything the contents back that it had."""
        for table, entries in self._dicts.values():
            # Never empty in between, lest a second Ctrl-C leave a module without parameters.
            for key in table.keys() - entries.keys():
                del table[key]
            table.update(entries)
        for sequence, items in self._lists.values():
            sequence[:] = items
        for tensor, values in self._tensors.values():
            owned(tensor).copy_(values, non_blocking=True)
        for generator, state in self._generators.values():
            generator.set_state(state)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors copied."""
        return sum(bytes_of(values) for _, values in self._tensors.values())
