"""Kinds of plain Python state, each with how it is copied, restored in place and looked into."""

from __future__ import annotations

import array
import io
import random
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from types import GeneratorType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

_Items = Iterable[tuple[Any, Any]]  # places and what lies there


class Kind(NamedTuple):
    """One kind of state. ``put`` returns why it could not restore, if so."""

    type: type | tuple[type, ...]
    take: Callable[[Any], Any] | None  # None: it has no state but that of its items
    put: Callable[[Any, Any], str | None] = lambda value, saved: None
    items: Callable[[Any], _Items] = lambda value: ()
    place: str = "[{!r:.40}]"  # of an item, in names


def _same(these: Iterable[Any], those: Iterable[Any]) -> bool:
    """Whether two iterables of one length hold the same objects."""
    return all(map(is_, these, those))


def _base(mapping: dict[Any, Any]) -> type[dict[Any, Any]]:
    """Return the class whose methods do what the name says, whatever a subclass makes of them."""
    return OrderedDict if isinstance(mapping, OrderedDict) else dict


def _take_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    return dict(_base(value).items(value))


def _put_dict(value: dict[Any, Any], saved: dict[Any, Any]) -> None:
    base = _base(value)
    items = _same(base.values(value), saved.values())
    if len(value) == len(saved) and items and _same(base.keys(value), saved):
        return
    # Never empty in between, lest a second Ctrl-C leave a module bare.
    for key in [key for key in base.keys(value) if key not in saved]:
        base.__delitem__(value, key)
    for key, item in saved.items():
        base.__setitem__(value, key, item)
    if not _same(base.keys(value), saved):
        for key, item in saved.items():  # the order
            base.__delitem__(value, key)
            base.__setitem__(value, key, item)


def _dict_items(value: dict[Any, Any]) -> _Items:
    return _base(value).items(value)


def _put_list(value: list[Any], saved: list[Any]) -> None:
    if not (len(value) == len(saved) and _same(value, saved)):
        list.__setitem__(value, slice(None), saved)


def _put_set(value: set[Any], saved: set[Any]) -> None:
    set.difference_update(value, value - saved)
    set.update(value, saved)


def _put_deque(value: deque[Any], saved: list[Any]) -> None:
    if not (len(value) == len(saved) and _same(value, saved)):
        value.clear()
        value.extend(saved)


def _put_buffer(value: Any, saved: Any) -> None:
    if value != saved:
        value[:] = saved


def _put_array(value: np.ndarray[Any, Any], saved: np.ndarray[Any, Any]) -> str | None:
    if not value.flags.writeable:
        return None
    if value.shape != saved.shape:
        return "its shape has changed"
    value[...] = saved
    return None


def _array_items(value: np.ndarray[Any, Any]) -> _Items:
    return enumerate(value.ravel()) if value.dtype.hasobject and value.dtype.names is None else ()


def _take_attributes(value: Any) -> dict[str, Any]:
    return dict(vars(value))


def _put_attributes(value: Any, saved: dict[str, Any]) -> None:
    _put_dict(vars(value), saved)


def _attribute_items(value: Any) -> _Items:
    # Hooks are observers: what they have seen stays theirs. Of tensors a module's own copy knows.
    own = ("_parameters", "_buffers")
    held = vars(value).items()
    return ((name, item) for name, item in held if "_hooks" not in name and name not in own)


def _slots(value: Any) -> Iterator[str]:
    for cls in type(value).__mro__:
        names = vars(cls).get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def _take_slots(value: Any) -> dict[str, Any]:
    names = (name for name in _slots(value) if not name.startswith("__"))
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _put_slots(value: Any, saved: dict[str, Any]) -> None:
    for name in _take_slots(value).keys() - saved.keys():
        object.__delattr__(value, name)
    for name, item in saved.items():
        if getattr(value, name, None) is not item:
            object.__setattr__(value, name, item)


def _slot_items(value: Any) -> _Items:
    return _take_slots(value).items()


def _take_class(value: type) -> dict[str, Any]:
    own = (pair for pair in vars(value).items() if not pair[0].startswith(("__", "_abc_")))
    return {name: item for name, item in own if not hasattr(type(item), "__get__")}


def _put_class(value: type, saved: dict[str, Any]) -> None:
    now = _take_class(value)
    for name in now.keys() - saved.keys():
        delattr(value, name)
    for name, item in saved.items():
        if now.get(name) is not item:
            setattr(value, name, item)


def _class_items(value: type) -> _Items:
    return _take_class(value).items()


def _put_generator(value: torch.Generator, saved: Tensor) -> None:
    value.set_state(saved)


def _take_numpy(value: np.random.Generator) -> Any:
    return value.bit_generator.state


def _put_numpy(value: np.random.Generator, saved: Any) -> None:
    value.bit_generator.state = saved


def _take_file(value: io.IOBase) -> int | None:
    try:
        return None if value.closed else value.tell()
    except OSError:  # a pipe, or a text file that is iterated over
        return None


def _put_file(value: io.IOBase, saved: int | None) -> str | None:
    if saved is None or _take_file(value) == saved:
        return None
    if value.closed or value.writable() or not value.seekable():
        return "a file that was written to or closed"
    value.seek(saved)
    return None


def _take_place(value: Any) -> tuple[Any, ...]:
    reduced: tuple[Any, ...] = value.__reduce__()[2:]
    return reduced  # the index, or nothing at the end


def _put_place(value: Any, saved: tuple[Any, ...]) -> str | None:
    now = _take_place(value)
    if now == saved:
        return None
    if not now:
        return "an iterator that is used up"
    value.__setstate__(*saved)
    return None


def _take_frame(value: GeneratorType[Any, Any, Any]) -> Any:
    frame = value.gi_frame
    return None if frame is None else (frame.f_lasti, dict(frame.f_locals))


def _put_frame(value: GeneratorType[Any, Any, Any], saved: Any) -> str | None:
    now = _take_frame(value)
    if saved is None:
        return None
    if now is None or now[0] != saved[0] or not _same(now[1].values(), saved[1].values()):
        return "a generator that has moved on"
    return None


def _take_graph_tensor(value: Tensor) -> tuple[int, Tensor]:
    return value._version, value.detach().clone()


def _put_graph_tensor(value: Tensor, saved: tuple[int, Tensor]) -> None:
    if value._version != saved[0]:
        with torch.no_grad():
            value.copy_(saved[1])


def _underlying(value: Any) -> _Items:
    return enumerate(value.__reduce__()[1])


ATTRIBUTES: Final = Kind(object, _take_attributes, _put_attributes, _attribute_items, ".{}")
SLOTS: Final = Kind(object, _take_slots, _put_slots, _slot_items, ".{}")
CLASS: Final = Kind(type, _take_class, _put_class, _class_items, ".{}")
# A tensor within an autograd graph, which writing it back without need would spoil.
GRAPH_TENSOR: Final = Kind(Tensor, _take_graph_tensor, _put_graph_tensor)

RANDOM: Final = (
    Kind(torch.Generator, torch.Generator.get_state, _put_generator),
    Kind(random.SystemRandom, None),
    Kind(random.Random, lambda value: value.getstate(), lambda value, saved: value.setstate(saved)),
    Kind(np.random.Generator, _take_numpy, _put_numpy),
    Kind(
        np.random.RandomState,
        lambda value: value.get_state(legacy=False),
        lambda value, saved: value.set_state(saved),
    ),
    Kind(
        np.random.BitGenerator,
        lambda value: value.state,
        lambda value, saved: setattr(value, "state", saved),
    ),
)
CONTENTS: Final = (
    Kind(dict, _take_dict, _put_dict, _dict_items),
    Kind(list, lambda value: list.__getitem__(value, slice(None)), _put_list, enumerate),
    Kind((tuple, frozenset), None, items=enumerate),
    Kind(set, set.copy, _put_set, enumerate),
    Kind(deque, list, _put_deque, enumerate),
    Kind(bytearray, bytes, _put_buffer),
    Kind(array.array, lambda value: value[:], _put_buffer),
    Kind(np.ndarray, lambda value: value.copy(), _put_array, _array_items),
    Kind(io.IOBase, _take_file, _put_file),
    Kind((type(iter([])), type(iter(())), type(reversed([]))), _take_place, _put_place),
    Kind((zip, map, filter), None, items=_underlying),
    Kind(GeneratorType, _take_frame, _put_frame),
)


def fingerprint(value: Tensor | np.ndarray[Any, Any]) -> Any:
    """Return what tells, without a copy, whether a tensor or an array has changed since."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if value.dtype.hasobject or not value.flags.writeable:
        return None
    # In full up to 1 MiB, which takes a millisecond; of a larger one every so many elements.
    flat = value.reshape(-1) if value.flags.c_contiguous else value.ravel()[:0]
    return zlib.crc32(flat[:: 1 + value.nbytes // 2**20].tobytes())
