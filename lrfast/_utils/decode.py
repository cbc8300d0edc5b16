"""Plain data of a file as values: by the types of a dataclass, or by a table of checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
import torch

from lrfast._utils.validation import (
    check_bool,
    check_dict,
    check_float,
    check_int,
    check_list,
    check_str,
    short_repr,
)

Check: TypeAlias = Callable[[str, Any], Any]  # of a name and a value, as those of validation

_NUMBER_WORDS = ("nan", "-nan", "inf", "-inf")  # JSON has no numbers for them


def encode(value: Any) -> Any:
    """Return a value as ``torch.load`` takes it without trust: tensors, lists and dicts."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: encode(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [encode(entry) for entry in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def decode_fields(what: str, value: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the entries of a dict that have a check, as the checks return them."""
    given = check_dict(what, value, checks)
    return {name: check(name, given[name]) for name, check in checks.items()}


def list_of(check: Check, least: int = 0) -> Check:
    """Return the check of a list with so many entries at least."""
    return lambda name, value: [check(name, each) for each in check_list(name, value, least)]


def optional(check: Check) -> Check:
    """Return a check that None passes, too."""
    return lambda name, value: None if value is None else check(name, value)


def decode(kind: Any, value: Any, name: str) -> Any:
    """Return plain data as a value of an annotated type, dataclasses and arrays included."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is float:
        is_word = isinstance(value, str) and value in _NUMBER_WORDS
        return float(value if is_word else check_float(name, value))
    if kind is int:
        return check_int(name, value)
    if kind is str or origin is Literal:
        return check_str(name, value, args)
    if kind is bool:
        return check_bool(name, value)
    if origin is UnionType:
        return None if value is None else decode(args[0], value, name)
    if origin is MappingProxyType:
        entries = check_dict(name, value).items()
        return MappingProxyType({check_str(name, k): decode(args[1], v, name) for k, v in entries})
    if origin is np.ndarray:
        rows = check_list(name, value)
        if rows and isinstance(rows[0], list):
            return np.stack([decode(kind, row, name) for row in rows])
        return np.array([decode(float, each, name) for each in rows], dtype=np.float64)
    if origin is tuple:
        each = check_list(name, value)
        kinds = args[:1] * len(each) if args[-1] is Ellipsis else args
        return tuple(decode(*pair, name) for pair in zip(kinds, each, strict=True))
    given = check_dict(name, value)
    unknown = given.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{name} must be a {kind.__name__}, got {short_repr(sorted(unknown))}")
    hints = get_type_hints(kind)
    read = [field.name for field in fields(kind) if field.default is MISSING or field.name in given]
    return kind(**{key: decode(hints[key], given[key], key) for key in read})
