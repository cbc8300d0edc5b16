"""Changes to plain data, tensors and bytes, drawn from a seeded generator."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 624, 625, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**62),
    *(2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, -0.5, 1.5, 1e-300, 5e-324, 1e16, 1e300, -1e300, 1.7976931348623157e308),
    *(math.nan, math.inf, -math.inf, True, False),
)
TEXTS = ("", "x", "lr", "params", "state", "\ud800", "\x00", "é", "a" * 5000, "nan", "-inf", "1")
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
MORE_TYPES = (*TYPES, torch.uint8, torch.bool, torch.complex64, torch.complex128)


def mutate(random: Random, value: Any) -> Any:
    """Return the value with one place in it changed; what it holds itself stays as it is."""
    if isinstance(value, dict | list | tuple) and value and random.random() < 0.9:
        return _within(random, value)
    return _changed(random, value)


def damage(random: Random, data: bytes) -> bytes:
    """Return the bytes cut off, flipped, doubled or with others among them."""
    kind = random.randrange(5)
    first, last = sorted(random.randrange(len(data) + 1) for _ in range(2))
    if kind == 0:
        return data[:first]
    if kind == 1:
        return data[:first] + data[last:]
    if kind == 2:
        return data[:last] + data[first:]
    if kind == 3:
        return data[:first] + random.randbytes(random.randrange(1, 9)) + data[first:]
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _within(random: Random, value: Any) -> Any:
    if isinstance(value, dict):
        key = random.choice(list(value))
        return type(value)({**value, key: mutate(random, value[key])})
    place = random.randrange(len(value))
    kind = list if isinstance(value, list) else tuple
    return kind([*value[:place], mutate(random, value[place]), *value[place + 1 :]])


def _changed(random: Random, value: Any) -> Any:
    if random.random() < 0.15:
        return junk(random)
    for kind, change in _CHANGES:
        if isinstance(value, kind):
            return change(random, value)
    return junk(random)


def junk(random: Random) -> Any:
    """Something that a file can hold, and that nobody expects there."""
    kind = random.randrange(11)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind < 6:
        return random.choice(TEXTS)
    if kind < 8:
        return _tensor(random)
    if kind == 8:
        return random.choice((None, [], {}, (), b"", b"\x80", 1j, set(), OrderedDict()))
    if kind == 9:
        return random.choice((torch.float32, torch.device("cpu"), torch.Size([2]), torch.strided))
    return random.choice((_nested, _circular, lambda: [[]] * 5, lambda: {"a": {"b": 1}}))()


def _nested() -> Any:
    value: Any = []
    for _ in range(3000):
        value = [value]
    return value


def _circular() -> Any:
    value: dict[str, Any] = {}
    value["itself"] = [value]
    return value


def _tensor(random: Random) -> Tensor:
    dtype = random.choice(MORE_TYPES)
    shape = random.choice(((), (1,), (0,), (2,), (3,), (2, 2), (3, 1), (1, 1, 1), (7, 5)))
    kind = random.randrange(8)
    if kind == 0:
        return torch.zeros(1, dtype=dtype).expand(2 ** random.choice((3, 20, 40)))
    if kind == 1:
        return torch.empty(shape, dtype=dtype, device="meta")
    if kind == 2:
        return torch.eye(3).to_sparse()
    if kind == 3 and dtype.is_floating_point:
        return torch.full(shape, random.choice((math.nan, math.inf, -1.0, 6e4)), dtype=dtype)
    return torch.full(shape, random.choice((0, 1, 3, 100)), dtype=dtype)


def _of_dict(random: Random, value: dict[Any, Any]) -> Any:
    changed = type(value)(value)
    kind = random.randrange(4)
    if kind == 0 and value:
        del changed[random.choice(list(value))]
    elif kind == 1 and value:
        changed[_name(random)] = changed.pop(random.choice(list(value)))
    elif kind == 2 and len(value) > 1:
        one, other = random.sample(list(value), 2)
        changed[one], changed[other] = value[other], value[one]
    else:
        changed[_name(random)] = junk(random)
    return changed


def _name(random: Random) -> Any:
    return random.choice((*TEXTS, "begin", "rate", "lrfast", "betas", 0, 1, -1, 2**63, None, 0.5))


def _of_list(random: Random, value: Any) -> Any:
    changed = list(value)
    place = random.randrange(len(changed) + 1)
    kind = random.randrange(6)
    if kind == 0 and changed:
        del changed[place - 1]
    elif kind == 1 and changed:
        changed.insert(place, random.choice(changed))
    elif kind == 2 and changed:
        changed *= random.choice((0, 2, 50))
    elif kind == 3:
        random.shuffle(changed)
    elif kind == 4 and isinstance(value, list):
        return tuple(changed)
    else:
        changed.insert(place, junk(random))
    return changed if isinstance(value, list) else tuple(changed)


def _of_number(random: Random, value: Any) -> Any:
    near: Callable[[], Any] = random.choice(
        (
            *(lambda: value + 1, lambda: value - 1, lambda: -value, lambda: value * 2),
            *(lambda: value * 1e9, lambda: str(value), lambda: [value], lambda: None),
        )
    )
    try:
        return near() if random.random() < 0.4 else random.choice(NUMBERS)
    except OverflowError:
        return -value


def _of_text(random: Random, value: str) -> Any:
    at = random.randrange(len(value) + 1)
    near = (value[:at], value.upper(), value + "x", value.encode("utf-8", "replace"))
    return random.choice((*near, *TEXTS))


def _of_tensor(random: Random, value: Tensor) -> Any:
    kind = random.randrange(9)
    is_plain = value.layout is torch.strided and value.device.type == "cpu"
    if kind == 0 or not is_plain or value.numel() > 2**20:
        return _tensor(random)
    if kind == 1:
        return value.to(random.choice(TYPES))
    if kind == 2:
        return value.reshape(-1)
    if kind == 3:
        return value.unsqueeze(0)
    if kind == 4 and value.dim():
        return value[:-1]
    if kind == 5 and value.dim():
        return torch.cat([value, value])
    if kind == 6:
        return value.clone().requires_grad_() if value.is_floating_point() else value[None]
    if kind == 7 and value.dim():
        return value.as_strided(value.shape, [0] * value.dim())
    changed = value.detach().clone()
    if changed.numel():
        fill = random.choice((-1, 0, 1, 100, 255 if changed.dtype is torch.uint8 else math.nan))
        is_fit = changed.is_floating_point() or changed.is_complex() or not math.isnan(fill)
        changed.view(-1)[random.randrange(changed.numel())] = fill if is_fit else 1
    return changed


_CHANGES: tuple[tuple[Any, Callable[[Random, Any], Any]], ...] = (
    (dict, _of_dict),
    (list | tuple, _of_list),
    (int | float, _of_number),
    (str, _of_text),
    (Tensor, _of_tensor),
)
