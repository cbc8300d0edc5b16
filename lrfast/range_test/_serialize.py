"""Range tests as strict JSON files; reading one gives the bits that were written.

Numbers that JSON has no word for are the strings "nan", "-nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from lrfast._utils.atomic_write import replacing
from lrfast._utils.validation import (
    check_bool,
    check_dict,
    check_finite,
    check_float,
    check_int,
    check_list,
    check_str,
    short_repr,
)
from lrfast.range_test._sweep import Sweep

Result = TypeVar("Result")

_FORMAT = 1
_WORDS = ("nan", "-nan", "inf", "-inf")


def save(result: Any, path: str | Path) -> None:
    """Write every field of a range test."""
    content = {field.name: _plain(getattr(result, field.name)) for field in fields(result)}
    text = json.dumps({"format": _FORMAT, **content})
    with replacing(path, encoding="utf-8") as file:
        file.write(text + "\n")


def load(path: str | Path, kind: type[Result]) -> Result:
    """Return the range test, of the class ``kind``, that :func:`save` wrote."""
    wanted = f"path must name a file that RangeTest.to_json wrote, got {str(path)!r}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted}, which is no JSON: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{wanted}, which has no format")
    if content["format"] != _FORMAT:
        raise ValueError(
            f"{wanted} of format {short_repr(content['format'])}; "
            f"this lrfast reads format {_FORMAT}"
        )
    try:
        hints = get_type_hints(kind)
        found = {name: decode(hint, content[name], name) for name, hint in hints.items()}
        _check(found)
    except KeyError as error:
        raise ValueError(f"{wanted}, which lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, which is broken: {error}") from error
    return kind(**found)


def _plain(value: Any) -> Any:
    """Return what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return f"-{abs(value)}" if math.copysign(1.0, value) < 0 else str(value)
    return value


def decode(kind: Any, value: Any, name: str) -> Any:
    """Return plain data as a value of an annotated type, dataclasses and arrays included."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is float:
        is_word = isinstance(value, str) and value in _WORDS
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


def _check(found: dict[str, Any]) -> None:
    """Refuse fields that are no range test, although each is of its type."""
    if "auto" not in found["suggestions"]:
        raise ValueError("it has no suggestion of rule 'auto'")
    points, repeats, sweep = len(found["lrs"]), found["repeats"], found["sweep"]
    curves = [found[name] for name in ("lrs", "losses", "smoothed", "derivative")]
    if any(curve.shape != (points,) for curve in curves) or (
        repeats is not None and not (repeats.ndim == 2 and repeats.shape[1] >= points)
    ):
        raise ValueError("its arrays have different lengths")
    _check_sweep(sweep, points)


def _check_sweep(sweep: Sweep, points: int) -> None:
    for first, last in sweep.ranges:
        check_finite(
            "last of ranges", last, least=check_finite("first of ranges", first, least=0.0)
        )
        if first == 0 < last:
            raise ValueError(f"its sweep begins at {first}")
    if sweep.reference >= len(sweep.ranges):
        raise ValueError(f"its sweep has no group {sweep.reference}")
    first, last = sweep.ranges[sweep.reference]
    if not first < last:
        raise ValueError(f"its sweep goes from {first} to {last}")
    check_int("num_iter", sweep.num_iter, least=max(points, 2))
