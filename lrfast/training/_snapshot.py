"""Snapshot of a training set-up, which restores it exactly, so that a range test leaves no trace.

It is written back *into the same tensors*: addresses, views, tied weights and captured graphs stay
valid. There is no host-device synchronisation, except in the `state_dict` of objects in `others`.

Left out:

* An optimizer's state beyond `state` and `param_groups`, unless it is an `Engine`.
* Other Python state of modules (counters, caches), hooks and swapped submodules. Shapes, dtypes and
  devices are taken to stay as they are.
* In optimizer state, objects that are no dicts, lists, tuples, tensors, generators or immutable
  values are kept by reference.
* Iterators in use and the random state of workers that are already running cannot be restored.
  Workers that a sweep started are dropped, also with `persistent_workers=True`.
"""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lrfast._utils.async_copy import note_use
from lrfast.training._data import end_workers, generators_of, tensors_in


@runtime_checkable
class Engine(Protocol):
    """An optimizer with state that torch does not know.

    `_engine_restore` is called after `state` and `param_groups` are restored, with the object that
    `_engine_snapshot` returned; it may be called several times with the same object.
    """

    def _engine_snapshot(self) -> object: ...

    def _engine_restore(self, state: object, /) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """An entry of `others`."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Restore the state."""


def bytes_needed(model: nn.Module, optimizer: Optimizer) -> dict[torch.device, int]:
    """Return how much a `Snapshot` of the two would take now, in bytes per device.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> bytes_needed(model, torch.optim.SGD(model.parameters(), lr=0.1))
        {device(type='cpu'): 12}
    """
    listed = (p for group in optimizer.param_groups for p in group["params"])
    parameters = list(dict.fromkeys(chain(model.parameters(), listed)))
    grads = (p.grad for p in parameters if p.grad is not None)
    states = tensors_in(list(optimizer.state.values()))
    needed: dict[torch.device, int] = {}
    tensors = dict.fromkeys(chain(parameters, model.buffers(), grads, states))
    for tensor in filter(_has_values, tensors):
        needed[tensor.device] = needed.get(tensor.device, 0) + bytes_of(dense_view(tensor))
    return needed


def dense_view(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` with memory of its own; copy_ refuses expanded dimensions."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def bytes_of(tensor: Tensor) -> int:
    """Return the size of a tensor's memory, sparse ones included."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.numel() * tensor.element_size()  # nbytes is not there for every layout


def _has_values(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and not is_lazy(tensor)


class TensorStore:
    """Copies of modules, nested containers, their tensors and generators, each object once.

    A container's copy is shallow: its items are the same objects afterwards, and each is restored
    by its own entry. So sharing, cycles and identities need no further care. Originals are held so
    that their ids stay taken.
    """

    def __init__(self, on_host: bool = False) -> None:
        self._on_host = on_host
        self._saved: dict[int, tuple[Any, Any]] = {}
        self._gradients: dict[int, tuple[Tensor, Tensor | None, bool]] = {}
        self.modes: dict[int, tuple[nn.Module, bool]] = {}  # by the module's id

    def save_modules(self, model: nn.Module) -> None:
        """Copy a module and those in it, with the gradients of their parameters."""
        for module in model.modules():
            if id(module) in self.modes:
                continue
            self.modes[id(module)] = (module, module.training)
            for parameter in module.parameters(recurse=False):
                self.save_parameter(parameter)
            for buffer in module.buffers(recurse=False):
                self.save(buffer)
            # The tables, too (a scripted module's are none): `self.mean = new` rebinds a buffer.
            self.save(module._parameters)
            self.save(module._buffers)

    def save_parameter(self, parameter: Tensor) -> None:
        """Copy a parameter with its gradient."""
        self.save(parameter)
        if id(parameter) not in self._gradients:
            self._gradients[id(parameter)] = (parameter, parameter.grad, parameter.requires_grad)
            self.save(parameter.grad)

    def save(self, value: object) -> None:
        """Copy `value` and everything in it; values of other types are ignored."""
        if id(value) in self._saved:
            return
        if isinstance(value, Tensor):
            if (copied := self._copied(value)) is not None:
                self._saved[id(value)] = (value, copied)
        elif isinstance(value, torch.Generator):
            self._saved[id(value)] = (value, value.get_state())
        elif isinstance(value, dict):
            self._saved[id(value)] = (value, dict(value))
        elif isinstance(value, list):
            self._saved[id(value)] = (value, value[:])
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                self.save(item)

    def _copied(self, tensor: Tensor) -> Tensor | None:
        """Return a copy; None of a packed parameter without a gradient, which no step changes."""
        if not _has_values(tensor):
            return None
        try:
            return self._copy(dense_view(tensor))
        except (NotImplementedError, RuntimeError) as error:
            is_idle = isinstance(tensor, nn.Parameter) and tensor.grad is None
            if not is_idle or is_out_of_memory(error):
                raise
            return None

    def _copy(self, tensor: Tensor) -> Tensor:
        if not self._on_host or tensor.device.type == "cpu":
            return tensor.clone()
        # Pinned, so that neither direction waits: the copies queue behind what uses the tensor.
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return copy.copy_(tensor, non_blocking=True)

    def on_host(self, apart: Iterable[Tensor] = ()) -> TensorStore:
        """Return the part on the host, with containers as they are now, no gradients of `apart`."""
        part, ids = TensorStore(), set(map(id, apart))
        for key, (original, copied) in self._saved.items():
            if isinstance(original, dict | list):
                part._saved[key] = original, original.copy()
            elif original.device.type == "cpu":
                part._saved[key] = original, copied
        part._gradients = {k: held for k, held in self._gradients.items() if k not in ids}
        part.modes = self.modes
        return part

    def restore(self) -> None:
        """Restore everything, in place."""
        with torch.no_grad():
            for original, copied in self._saved.values():
                if isinstance(original, Tensor):
                    note_use(copied)  # it may come from another stream, and is dropped at any time
                    dense_view(original).copy_(copied, non_blocking=original.is_cuda)
                elif isinstance(original, torch.Generator):
                    original.set_state(copied)
                elif isinstance(original, dict):
                    # Never empty in between, lest a second Ctrl-C leave a module bare.
                    for key in original.keys() - copied.keys():
                        del original[key]
                    original.update(copied)
                else:
                    original[:] = copied
        for parameter, grad, requires_grad in self._gradients.values():
            parameter.grad = grad
            parameter.requires_grad = requires_grad
        for module, mode in self.modes.values():
            module.training = mode

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors copied."""
        saved = self._saved.values()
        return sum(bytes_of(copied) for value, copied in saved if isinstance(value, Tensor))


@dataclass(frozen=True)
class GlobalRandom:
    """The states of the process-wide random number generators."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def take(cls) -> GlobalRandom:
        """Return the states as they are now."""
        # Asking for CUDA's states would initialise CUDA: slow, and fatal to a later fork.
        initialized = torch.cuda.is_initialized()
        cuda = torch.cuda.get_rng_state_all() if initialized else []
        numpy = np.random.get_state(legacy=False)  # a dict, whatever bit generator is in place
        return cls(random.getstate(), numpy, torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Set the generators to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        torch.cuda.set_rng_state_all(self.cuda)


class Snapshot:
    """A copy, in memory, of all that training changes, to be restored bit for bit.

    Covered: parameters and buffers (also non-persistent ones, and parameters that only the
    optimizer knows), their gradients and `requires_grad`, every submodule's train/eval flag, the
    optimizer's `state` and `param_groups`, the `others`, Python's, numpy's and torch's global
    random states, and the generators of the `loaders`. Not covered: see the module's text.

    Args:
        model: the module that trains; lazy parameters must have been initialised.
        optimizer: its optimizer; its state may still be empty.
        others: list or tuple of objects with `state_dict` and `load_state_dict`, such as LR
            schedulers; a `GradScaler` is restored without a synchronisation. Default: none.
        loaders: list or tuple of data loaders; those that are not a `DataLoader` are left alone.
            Default: none.
        on_host: whether copies of a GPU's tensors lie in pinned host memory, for models that fill
            the GPU. Default: on the device of each tensor.

    Raises:
        TypeError: an argument is not of the type above.
        ValueError: a parameter or buffer of `model` is lazy.
        MemoryError: there is no room for the copies; what there was of them is gone again.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> before = model.weight.detach().clone()
        >>> snapshot = Snapshot(model, optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> snapshot.restore()
        >>> torch.equal(model.weight, before), model.weight.grad
        (True, None)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        others: Sequence[object] = (),
        loaders: Sequence[object] = (),
        on_host: bool = False,
    ) -> None:
        _check(model, optimizer, others, loaders)
        self._store = TensorStore(on_host)
        self._engine = optimizer if isinstance(optimizer, Engine) else None
        try:
            with torch.no_grad():
                self._store.save_modules(model)
                self._take_optimizer(optimizer)
            self._take_others(others, loaders)
            self._random = GlobalRandom.take()
        except (MemoryError, RuntimeError) as error:
            # The error would keep what there is of the copies for as long as it lives.
            vars(self).clear()
            traceback.clear_frames(error.__traceback__)
            if not is_out_of_memory(error):
                raise
            needed = sizes(bytes_needed(model, optimizer))
            raise MemoryError(
                f"there is no memory for a snapshot, which copies {needed}; let the copies lie in "
                "host memory (on_host=True, for lr_find snapshot='host') or free what they need"
            ) from error

    def _take_optimizer(self, optimizer: Optimizer) -> None:
        # optimizer.load_state_dict would bind both anew.
        self._tables = (optimizer, optimizer.state, optimizer.param_groups)
        self._store.save(optimizer.state)
        self._store.save(optimizer.param_groups)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            self._store.save_parameter(parameter)
        self._engine_state = self._engine._engine_snapshot() if self._engine else None

    @torch.no_grad()
    def _take_others(self, others: Sequence[object], loaders: Sequence[object]) -> None:
        self._others: list[tuple[Stateful, Any]] = []
        for other in others:
            if isinstance(other, torch.amp.GradScaler):
                # Its state_dict synchronises, and omits which optimizers are unscaled.
                self._store.save(vars(other))
            elif isinstance(other, Stateful):
                self._others.append((other, copy.deepcopy(other.state_dict())))
        self._iterators: list[tuple[DataLoader[Any], Any]] = []
        for loader in loaders:
            if isinstance(loader, DataLoader):
                # Persistent workers, once started, no longer draw a seed at each epoch.
                self._iterators.append((loader, loader._iterator))
                self._store.save(generators_of(loader))

    def restore(self) -> None:
        """Restore everything; may be called again later.

        Raises:
            Exception: whatever a `load_state_dict` or `_engine_restore` raises; the rest is
                restored nevertheless, other objects included.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
            >>> model = model.eval()
            >>> snapshot.restore()
            >>> model.training
            True
        """
        with ExitStack() as parts:  # one after another from the last, whatever they raise
            parts.callback(self._random.put_back)  # last, so that nothing above can draw from it
            parts.callback(self._restore_training)
            for other, state in reversed(self._others):
                parts.callback(_load, other, state)

    def _restore_training(self) -> None:
        optimizer, state, param_groups = self._tables
        optimizer.state, optimizer.param_groups = state, param_groups
        self._store.restore()
        for loader, iterator in self._iterators:
            if loader._iterator is not iterator:
                end_workers(loader._iterator)
            loader._iterator = iterator
        if self._engine:
            self._engine._engine_restore(self._engine_state)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the snapshot holds, on all devices together.

        Random states, a few kB of host memory, are not counted.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1)).nbytes
            12
        """
        elsewhere = tensors_in([state for _, state in self._others] + [self._engine_state])
        return self._store.nbytes + sum(map(bytes_of, elsewhere))


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    others: Sequence[object] = (),
    loaders: Sequence[object] = (),
    on_host: bool = False,
) -> Iterator[Snapshot]:
    """Take a snapshot on entry and restore it on exit, also after an exception or Ctrl-C.

    Arguments and errors are those of `Snapshot`, which it yields.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with preserved(model, optimizer):
        ...     optimizer.param_groups[0]["lr"] = 10.0
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """
    snapshot = Snapshot(model, optimizer, others=others, loaders=loaders, on_host=on_host)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def sizes(needed: dict[torch.device, int]) -> str:
    """Return in words how much memory of which devices there is."""
    return ", ".join(f"{size / 2**20:.1f} MiB of {device}" for device, size in needed.items())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, of Python, numpy, or torch on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no type of its own for the host's memory, pinned memory included.
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _load(other: Stateful, state: Any) -> None:
    # A copy, for load_state_dict may keep what it is given and change it later.
    other.load_state_dict(copy.deepcopy(state))


def _check(
    model: nn.Module, optimizer: Optimizer, others: Sequence[object], loaders: Sequence[object]
) -> None:
    # A single DataLoader given as `loaders` would be iterated, batch by batch, and not restored.
    for name, value, wanted, kind in (
        ("model", model, "a torch.nn.Module", nn.Module),
        ("optimizer", optimizer, "a torch.optim.Optimizer", Optimizer),
        ("others", others, "a list or tuple", (list, tuple)),
        ("loaders", loaders, "a list or tuple", (list, tuple)),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: wanted {wanted}, got {type(value).__name__}")
    for index, other in enumerate(others):
        if not isinstance(other, Stateful):
            got = type(other).__name__
            wanted = "an object with state_dict and load_state_dict"
            raise TypeError(f"others[{index}]: wanted {wanted}, got {got}")
    for path, module in model.named_modules():
        tensors = chain(module.named_parameters(path, False), module.named_buffers(path, False))
        lazy = [name for name, tensor in tensors if is_lazy(tensor)]
        if lazy and isinstance(module, LazyModuleMixin):  # others initialise none
            name = lazy[0]
            raise ValueError(f"model: wanted initialised parameters and buffers, got lazy {name!r}")
