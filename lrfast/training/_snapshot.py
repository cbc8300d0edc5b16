"""Snapshot of a training set-up, which restores it exactly, so that a range test leaves no trace.

It is written back *into the same tensors*: addresses, views, tied weights and captured graphs stay
valid. There is no host-device synchronisation, except in the `state_dict` of objects in `others`.

Also restored is what `_reachable` finds: attributes, containers, random generators, optimizers
within optimizers, and what the training's functions name of these. Left out:

* Hooks, and state outside Python: of extension types, other processes, devices that are no tensors.
* Of an `Engine`, what it does not restore by itself. Shapes, dtypes and devices are taken to stay
  as they are.
* Large tensors and arrays of data, iterators and files in use, and the frozen weights that trained
  adapters stand beside: noted if they have changed.
* The random state of workers that are already running. Workers that a sweep started are dropped,
  also with `persistent_workers=True`.
"""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
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
from lrfast.training._base_weights import BaseWeights
from lrfast.training._data import end_workers, generators_of, tensors_in
from lrfast.training._reachable import Copies, Reachable, reach, readable


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
    return _bytes_to_copy(reach(model, optimizer), BaseWeights(model))


def _bytes_to_copy(found: Reachable, apart: Container[object]) -> dict[torch.device, int]:
    listed = (
        p for each in found.optimizers for group in each.param_groups for p in group["params"]
    )
    trained = (p for module in found.modules for p in module.parameters(recurse=False))
    buffers = (b for module in found.modules for b in module.buffers(recurse=False))
    leaves = list(dict.fromkeys(chain(trained, listed, (each for _, each in found.tensors))))
    grads = (leaf.grad for leaf in leaves if leaf.grad is not None)
    states = tensors_in([list(each.state.values()) for each in found.optimizers])
    needed: dict[torch.device, int] = {}
    tensors = dict.fromkeys(chain(leaves, buffers, grads, states))
    for tensor in (each for each in tensors if each not in apart and _has_values(each)):
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

    def __init__(self, on_host: bool = False, apart: Container[object] = ()) -> None:
        self._on_host = on_host
        self._apart = apart  # tensors that are not copied
        self._saved: dict[int, tuple[Any, Any]] = {}
        self._gradients: dict[int, tuple[Tensor, Tensor | None, bool]] = {}
        self.modes: dict[int, tuple[nn.Module, bool]] = {}  # by the module's id

    def __contains__(self, key: int) -> bool:
        """Whether the object with this id is restored."""
        return key in self._saved

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
        if tensor in self._apart or not _has_values(tensor):
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
            if parameter.grad_fn is not None:
                parameter.detach_()  # written to within a graph, without being detached
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
    optimizer knows), their gradients and `requires_grad`, every submodule's train/eval flag and
    attributes, the optimizer's `state`, `param_groups` and attributes (another optimizer may be
    one), the `others`, Python's, numpy's and torch's global random states, those of the `loaders`,
    their samplers and data sets, and the modules, optimizers, schedulers, data and random
    generators that the `functions` name. Not covered: see the module's text, and `notes`.

    Args:
        model: the module that trains; lazy parameters must have been initialised.
        optimizer: its optimizer; its state may still be empty.
        others: list or tuple of objects with `state_dict` and `load_state_dict`, such as LR
            schedulers; a `GradScaler` is restored without a synchronisation. Default: none.
        loaders: list or tuple of data loaders or other data, or a dict of them by their names in
            `notes`. Default: none.
        functions: loss functions and training steps, whose own records stay. Default: none.
        on_host: whether copies of a GPU's tensors lie in pinned host memory, for models that fill
            the GPU. Default: on the device of each tensor.
        check: called with the bytes needed per device before anything is copied; it may raise.

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
        loaders: Sequence[object] | Mapping[str, object] = (),
        functions: Sequence[object] = (),
        on_host: bool = False,
        check: Callable[[dict[torch.device, int]], None] | None = None,
    ) -> None:
        _check(model, optimizer, others, loaders)
        if not isinstance(loaders, Mapping):
            loaders = {f"loaders[{index}]": loader for index, loader in enumerate(loaders)}
        found = reach(model, optimizer, others, loaders.items(), functions)
        self._base = BaseWeights(model)
        if check is not None:
            check(_bytes_to_copy(found, self._base))
        self._store, self._uncopied = TensorStore(on_host, self._base), found.unread
        try:
            with torch.no_grad():
                for module in found.modules:
                    self._store.save_modules(module)
                self._take_optimizers(list(dict.fromkeys([optimizer, *found.optimizers])))
                for name, tensor in found.tensors:
                    self._take_tensor(name, tensor)
                found.held = [pair for pair in found.held if id(pair[1]) not in self._store]
                self._copies = Copies(found)
            self._take_others(others, [*loaders.values(), *found.loaders])
            self._random = GlobalRandom.take()
        except (MemoryError, RuntimeError) as error:
            apart = self._base
            # The error would keep what there is of the copies for as long as it lives.
            vars(self).clear()
            traceback.clear_frames(error.__traceback__)
            if not is_out_of_memory(error):
                raise
            needed = sizes(_bytes_to_copy(found, apart))
            raise MemoryError(
                f"there is no memory for a snapshot, which copies {needed}; let the copies lie in "
                "host memory (on_host=True, for lr_find snapshot='host') or free what they need"
            ) from error

    def _take_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        # optimizer.load_state_dict would bind both anew.
        self._tables = [(each, each.state, each.param_groups) for each in optimizers]
        for _, state, param_groups in self._tables:
            self._store.save(state)
            self._store.save(param_groups)
            for parameter in (p for group in param_groups for p in group["params"]):
                self._store.save_parameter(parameter)
        self._engines = [
            (each, each._engine_snapshot()) for each in optimizers if isinstance(each, Engine)
        ]

    def _take_tensor(self, name: str, tensor: Tensor) -> None:
        try:
            self._store.save_parameter(tensor)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            self._uncopied.append(f"{readable(name)} cannot be copied: {error}")

    @torch.no_grad()
    def _take_others(self, others: Sequence[object], loaders: Sequence[object]) -> None:
        self._others: list[tuple[Stateful, Any]] = []
        for other in others:
            if isinstance(other, torch.amp.GradScaler):
                # Its state_dict synchronises, and omits which optimizers are unscaled.
                self._store.save(vars(other))
            elif isinstance(other, Stateful) and not isinstance(other, nn.Module | Optimizer):
                self._others.append((other, copy.deepcopy(other.state_dict())))
        self._iterators: list[tuple[DataLoader[Any], Any]] = []
        for loader in loaders:
            if (shared := getattr(loader, "gradient_state", None)) is not None:
                self._store.save(vars(shared))  # where Accelerate's loaders register as in use
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
        for optimizer, state, param_groups in self._tables:
            if optimizer.state is not state:
                optimizer.state = state
            if optimizer.param_groups is not param_groups:
                optimizer.param_groups = param_groups
        self._store.restore()
        for loader, iterator in self._iterators:
            if loader._iterator is not iterator:
                end_workers(loader._iterator)
            loader._iterator = iterator
        self._copies.restore()
        self._base.compare()
        for engine, taken in self._engines:
            engine._engine_restore(taken)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was reached and could not be restored, a sentence each; may synchronise.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> data = (batch for batch in [1, 2])
            >>> with preserved(model, optimizer, loaders={"data": data}) as snapshot:
            ...     batch = next(data)
            >>> snapshot.notes
            ('data is not as before, and cannot be restored: a generator that has moved on',)
        """
        return (*self._uncopied, *self._copies.notes, *self._base.notes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the snapshot holds, on all devices together.

        Random states, a few kB of host memory, are not counted.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1)).nbytes
            12
        """
        elsewhere = tensors_in([state for _, state in (*self._others, *self._engines)])
        return self._store.nbytes + self._copies.nbytes + sum(map(bytes_of, elsewhere))


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    others: Sequence[object] = (),
    loaders: Sequence[object] | Mapping[str, object] = (),
    functions: Sequence[object] = (),
    on_host: bool = False,
    check: Callable[[dict[torch.device, int]], None] | None = None,
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
    options: dict[str, Any] = {"others": others, "loaders": loaders, "functions": functions}
    snapshot = Snapshot(model, optimizer, **options, on_host=on_host, check=check)
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
    model: nn.Module, optimizer: Optimizer, others: Sequence[object], loaders: object
) -> None:
    # A single DataLoader given as `loaders` would be iterated, batch by batch, and not restored.
    for name, value, wanted, kind in (
        ("model", model, "a torch.nn.Module", nn.Module),
        ("optimizer", optimizer, "a torch.optim.Optimizer", Optimizer),
        ("others", others, "a list or tuple", (list, tuple)),
        ("loaders", loaders, "a list or tuple", (list, tuple, dict)),
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
