"""Walk over the objects that a training reaches, and copies of their plain state.

Objects are walked by what they hold: attributes, slots, containers. Their code is read, too: what
functions, and methods of the user's classes, name as globals, closures and defaults. Of that only
what belongs to training is restored (modules, optimizers, schedulers, data, random generators); a
list that a loss function writes to is the user's record, which stays, with a note.
"""

from __future__ import annotations

import argparse
import dis
import queue
import re
import socket
import subprocess
import sys
import threading
from collections import UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from types import (
    CodeType,
    EllipsisType,
    FunctionType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
)
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lrfast.training._kinds import (
    ATTRIBUTES,
    CLASS,
    CONTENTS,
    GRAPH_TENSOR,
    RANDOM,
    SLOTS,
    Kind,
    fingerprint,
)

_ATOMS: Final = frozenset(
    {NoneType, bool, int, float, complex, str, bytes, range, slice, EllipsisType}
    | {ModuleType, CodeType, torch.dtype, torch.device, torch.Size}
)
_DATA: Final = (Dataset, DataLoader, Sampler)
_TRAINS: Final = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler, *_DATA)
_RANDOM: Final = tuple(
    chain.from_iterable(
        kind.type if isinstance(kind.type, tuple) else (kind.type,) for kind in RANDOM
    )
)
_HOLDERS: Final = (*_TRAINS, argparse.Namespace, SimpleNamespace, UserDict, UserList)
# Packages whose objects keep to themselves, except those of the types above.
_CLOSED: Final = sys.stdlib_module_names | {
    *("torch", "lrfast", "lightning", "pytorch_lightning", "lightning_fabric", "accelerate"),
    *("deepspeed", "ignite", "fastai", "pandas", "pyarrow", "ray", "wandb", "mlflow", "comet_ml"),
    *("neptune", "clearml", "tensorboardX"),
}
_OPEN: Final = ("torch.utils.data.", "torch.distributions.", "torch.optim.", "torch.amp.")
# Modules whose attributes are bookkeeping of theirs, which has to go on.
_WRAPPERS: Final = ("torch.distributed.", "torch.nn.parallel.", "torch._dynamo.", "torch.jit.")
_MIXINS: Final = "torch.distributed.fsdp._fully_shard"  # puts a class in front of the module's own
_LIVE: Final = (
    *(type(threading.Lock()), type(threading.RLock()), threading.Thread, threading.Event),
    *(threading.Condition, queue.Queue, socket.socket, subprocess.Popen),
)
_SMALL: Final = 4096  # bytes of a tensor or array of data that is copied
_ROOM: Final = 4_000_000  # entries of containers of data that are copied, at 8 bytes each
# What an object takes of that besides: in all, looking at data takes some tenths of a second.
_OBJECT: Final = 200
_IMMUTABLE: Final = 20  # of an object that is not copied
_MOST_SCANNED: Final = 20_000  # objects whose code is read, or that code names
_SCANNED: Final = 1000  # entries of a container that code names


_Found = tuple[Any, str, bool]  # an object, its name, whether it belongs to the data


class _Plan(NamedTuple):
    """What is to be done with the objects of a class."""

    kinds: tuple[Kind, ...]  # copied, and looked into
    is_data: bool
    is_module: bool
    may_be_live: bool  # whether one with threads or locks of its own is left alone
    price: int  # of _ROOM


class Reachable:
    """The objects that roots reach, each once, with their names.

    Of data only small tensors and arrays are copied; the others are watched.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self.modules: list[nn.Module] = []
        self.optimizers: list[Optimizer] = []
        self.loaders: list[DataLoader[Any]] = []
        self.unread: list[str] = []  # what could not be looked into, in words
        self.held: list[tuple[str, Any]] = []  # state of functions, which is not restored
        self._plain: list[tuple[str, Any, Kind]] = []
        self._watched: list[tuple[str, Any]] = []
        self._beyond: list[str] = []  # the first object of data that there was no room for
        self._room = _ROOM
        self._seen: dict[int, Any] = {}  # held, so that the ids stay taken
        self._scanned: dict[int, Any] = {}
        self._code: list[tuple[Any, str]] = []
        self._user_classes: dict[type, bool] = {}
        self._plans: dict[type, _Plan] = {}

    def add(self, value: object, name: str, is_data: bool = False) -> None:
        """Walk over an object and all that it holds."""
        stack: list[tuple[str, Iterator[_Found]]] = [(name, iter([(value, name, is_data)]))]
        while stack:
            try:
                value, name, is_data = next(stack[-1][1])
            except StopIteration:
                stack.pop()
            except Exception as error:  # attributes may do anything when they are read
                self.unread.append(f"{readable(stack.pop()[0])} cannot be looked into: {error}")
            else:
                if id(value) not in self._seen and type(value) not in _ATOMS:
                    self._seen[id(value)] = value
                    stack.append((name, self._visit(value, name, is_data)))

    def add_code(self, function: object, name: str) -> None:
        """Walk over what a function names that belongs to training."""
        self._code.append((function, name))

    def finish(self) -> None:
        """Read the code of all that was added."""
        while self._code and len(self._scanned) < _MOST_SCANNED:
            value, name = self._code.pop()
            if isinstance(value, (*_TRAINS, *_RANDOM)):
                self.add(value, name)
            elif id(value) not in self._scanned and type(value) not in _ATOMS:
                self._scanned[id(value)] = value
                if isinstance(value, Tensor | list | dict | set | deque) or (
                    self._is_user(type(value)) and hasattr(value, "__dict__")
                ):
                    self.held.append((name, value))
                with suppress(Exception):  # attributes may do anything when they are read
                    self._code += self._named_by(value, name)

    def _visit(self, value: Any, name: str, is_data: bool) -> Iterator[_Found]:
        """Note an object, and yield those that it holds."""
        cls = type(value)
        if (plan := self._plans.get(cls)) is None:
            plan = self._plans[cls] = self._plan(value, cls)
        is_data = is_data or plan.is_data
        if is_data:
            self._room -= plan.price + (len(value) if cls in (list, dict, set) else 0)
            if self._room <= 0:
                self._beyond = self._beyond or [re.sub(r"(\[[^]]*\])+$", "", name)]
            if _is_large(value):
                self._watched.append((name, value))
                return
        if isinstance(value, Tensor):
            if value.is_leaf and not value.is_inference():
                self.tensors.append((name, value))
            elif not value.is_inference():
                self._plain.append((name, value, GRAPH_TENSOR))
            return
        if plan.is_module:
            self.modules.append(value)
        elif isinstance(value, Optimizer):
            self.optimizers.append(value)
        elif isinstance(value, DataLoader):
            self.loaders.append(value)
        elif callable(value):
            self._code.append((value, name))
        kinds = plan.kinds
        if plan.may_be_live and any(isinstance(each, _LIVE) for each in vars(value).values()):
            return
        if plan.is_module and ATTRIBUTES not in kinds:
            yield from ((child, f"{name}.{key}", is_data) for key, child in value.named_children())
        for kind in kinds:
            if kind.take is not None:
                self._plain.append((name, value, kind))
            for place, item in _compound(kind, value):
                if is_data and self._room <= 0:
                    break
                yield item, name + place, is_data
        if kinds and self._is_user(cls):
            for each in cls.__mro__:
                if self._is_user(each) and id(each) not in self._seen:
                    self._seen[id(each)] = each
                    self._plain.append((each.__name__, each, CLASS))
                    self._code.append((each, each.__name__))
                    for place, item in _compound(CLASS, each):
                        yield item, each.__name__ + place, is_data

    def _plan(self, value: Any, cls: type) -> _Plan:
        """Return what is to be done with objects of a class, of which ``value`` is one."""
        is_module, is_holder = isinstance(value, nn.Module), isinstance(value, _HOLDERS)
        kinds = [k for k in (*RANDOM, *CONTENTS) if isinstance(value, k.type)][:1]
        is_open = is_holder or self._is_user(cls) or _is_open(cls)
        if isinstance(value, type | FunctionType | MethodType | partial | _BaseDataLoaderIter) or (
            is_module and _home(cls).__module__.startswith(_WRAPPERS)
        ):
            is_open = False
        if hasattr(value, "_engine_snapshot"):  # it restores itself
            is_open = False
        has_attributes = is_open and hasattr(value, "__dict__")
        if has_attributes:
            kinds.append(ATTRIBUTES)
        if is_open and any("__slots__" in vars(c) for c in cls.__mro__ if self._is_user(c)):
            kinds.append(SLOTS)
        return _Plan(
            tuple(kinds),
            isinstance(value, (*_DATA, np.memmap)),
            is_module,
            has_attributes and not (is_holder or self._is_user(cls)),
            _IMMUTABLE if isinstance(value, Tensor | np.ndarray | tuple) else _OBJECT,
        )

    def _named_by(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        """Yield what a function, or an object that a function names, names in turn."""
        cls = type(value)
        if isinstance(value, FunctionType):
            for each, item in self._names_in(value):
                yield item, each
        elif isinstance(value, MethodType):
            yield from ((value.__func__, name), (value.__self__, type(value.__self__).__name__))
        elif isinstance(value, partial):
            yield from ((each, name) for each in (value.func, value.args, value.keywords))
        elif isinstance(value, property | staticmethod | classmethod):
            function = value.fget if isinstance(value, property) else value.__func__
            yield function, name
        elif isinstance(value, type):
            if self._is_user(value):
                yield from ((item, f"{name}.{key}") for key, item in vars(value).items())
        elif cls in (list, tuple, set, dict) and len(value) <= _SCANNED:
            items = value.items() if cls is dict else enumerate(value)
            yield from ((item, f"{name}[{key!r:.40}]") for key, item in items)
        elif self._is_user(cls) and hasattr(value, "__dict__"):
            yield from ((item, f"{name}.{key}") for key, item in vars(value).items())
            yield from ((each, name) for each in cls.__mro__)
        elif callable(value) and (bound := getattr(value, "__self__", None)) is not None:
            yield bound, name
        else:  # a trainer's wrapper
            for key in ("optimizer", "_optimizer", "opt"):
                if isinstance(inner := getattr(value, "__dict__", {}).get(key), Optimizer):
                    yield inner, f"{name}.{key}"

    def _names_in(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from ((function.__name__, item) for item in defaults)
        if _is_users(function.__module__):
            present = function.__globals__
            yield from ((each, present[each]) for each in _globals_of(function.__code__, present))

    def _is_user(self, cls: type) -> bool:
        """Whether a class is the user's own, rather than a library's."""
        if cls not in self._user_classes:
            self._user_classes[cls] = _is_users(cls.__module__)
        return self._user_classes[cls]


class Copies:
    """Copies of the plain state that was reached, to be restored in place."""

    def __init__(self, reachable: Reachable) -> None:
        self._saved = [(n, v, kind, kind.take(v)) for n, v, kind in reachable._plain if kind.take]
        self._watched = [(name, value, fingerprint(value)) for name, value in reachable._watched]
        self._held = [(name, value, _outline(value)) for name, value in reachable.held]
        self._beyond = reachable._beyond
        self._notes: dict[str, str] = {}  # by the name of what could not be restored

    @property
    def notes(self) -> list[str]:
        """What could not be restored, a sentence each."""
        return [f"{readable(name)} {reason}" for name, reason in self._notes.items()]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors and arrays copied."""
        return sum(
            copied[1].nbytes if kind is GRAPH_TENSOR else copied.nbytes
            for _, _, kind, copied in self._saved
            if kind is GRAPH_TENSOR or isinstance(copied, np.ndarray)
        )

    def restore(self) -> None:
        """Restore everything, and note what cannot be."""
        for name, value, kind, copied in self._saved:
            try:
                reason = kind.put(value, copied)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            if reason is not None:
                self._notes[name] = f"is not as before, and cannot be restored: {reason}"
        for name, value, before in self._watched:
            if fingerprint(value) != before:
                self._notes[name] = (
                    "was changed in place and not restored: large data are not copied"
                )
        for name, value, outline in self._held:
            if _outline(value) != outline:
                self._notes[name] = "was changed by a function that names it, and is not restored"
        for name in self._beyond:
            self._notes[name] = "and what follows it are too many objects to copy and restore"


def reach(
    model: nn.Module,
    optimizer: Optimizer,
    others: Iterable[object] = (),
    data: Iterable[tuple[str, object]] = (),
    functions: Iterable[object] = (),
) -> Reachable:
    """Return what a training reaches."""
    reachable = Reachable()
    reachable.add(model, "model")
    reachable.add(optimizer, "optimizer")
    for index, other in enumerate(others):
        reachable.add(other, f"others[{index}]")
    for name, value in data:
        reachable.add(value, name, is_data=True)
    for function in functions:
        reachable.add_code(function, getattr(function, "__name__", type(function).__name__))
    reachable.finish()
    return reachable


def _outline(value: Any) -> Any:
    """Return what tells whether an object still holds the same objects, or a tensor its values."""
    if isinstance(value, Tensor):
        return fingerprint(value)
    items = value if isinstance(value, list | dict | set | deque) else vars(value)
    held = items.values() if isinstance(items, dict) else items
    return len(items), [*map(id, held)] if len(items) <= _SCANNED else None


def _is_large(value: object) -> bool:
    """Whether a tensor or an array is watched, if it belongs to the data."""
    if isinstance(value, Tensor):
        return not value.is_cpu or value.nbytes > _SMALL
    return isinstance(value, np.ndarray) and value.nbytes > _SMALL


def _compound(kind: Kind, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds that may hold something in turn, with its place in words."""
    if isinstance(value, list | tuple) and len(value) > 100:  # of a million rows, by their types
        types = set(map(type, value))
        if types == {tuple}:
            types = set(map(type, chain.from_iterable(value)))
        if _ATOMS.issuperset(types):
            return
    for place, item in kind.items(value):
        cls = type(item)
        if cls in _ATOMS or (cls is tuple and _ATOMS.issuperset(map(type, item))):
            continue
        is_short = isinstance(place, str | int)
        yield kind.place.format(place if is_short else type(place).__name__), item


def readable(name: str) -> str:
    """Return a name with the attributes of modules as users write them."""
    return re.sub(r"\._modules\['([^]]*)'\]", r".\1", name)


def _home(cls: type) -> type:
    """Return a module's own class, behind those that sharding puts in front."""
    return next((each for each in cls.__mro__ if not each.__module__.startswith(_MIXINS)), cls)


def _is_open(cls: type) -> bool:
    """Whether objects of a library's class are walked over."""
    module = cls.__module__
    return module.partition(".")[0] not in _CLOSED or module.startswith(_OPEN)


def _is_users(module: object) -> bool:
    """Whether a module is the user's own."""
    top = module.partition(".")[0] if isinstance(module, str) else "builtins"
    if top in _CLOSED:
        return False
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def _globals_of(code: CodeType, present: dict[str, Any]) -> Iterator[str]:
    """Yield the names of globals that code reads, with the functions in it."""
    known = {name for name in code.co_names if type(present.get(name)) not in _ATOMS}
    if known:
        loads = (each.argval for each in dis.get_instructions(code) if "GLOBAL" in each.opname)
        yield from dict.fromkeys(name for name in loads if name in known)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_of(inner, present)
