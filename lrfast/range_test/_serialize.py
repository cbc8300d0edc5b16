"""Range tests as strict JSON files; reading one gives the bits that were written.

Numbers that JSON has no word for are the strings "nan", "-nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from lrfast._utils.atomic_write import replacing
from lrfast._utils.decode import decode
from lrfast._utils.validation import check_dict, check_finite, check_int, short_repr
from lrfast.range_test._sweep import Sweep

Result = TypeVar("Result")

_FORMAT = 1


def packed(result: Any) -> dict[str, Any]:
    """Return every field of a range test as plain data."""
    return {field.name: plain(getattr(result, field.name)) for field in fields(result)}


def unpacked(content: Mapping[str, Any], kind: type[Result]) -> Result:
    """Return the range test, of the class ``kind``, that :func:`packed` described."""
    hints, given = get_type_hints(kind), check_dict("result", content)
    found = {name: decode(hint, given[name], name) for name, hint in hints.items()}
    _check(found)
    return kind(**found)


def save(result: Any, path: str | Path) -> None:
    """Write every field of a range test."""
    text = json.dumps({"format": _FORMAT, **packed(result)})
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
        return unpacked(content, kind)
    except KeyError as error:
        raise ValueError(f"{wanted}, which lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, which is broken: {error}") from error


def plain(value: Any) -> Any:
    """Return what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return f"-{abs(value)}" if math.copysign(1.0, value) < 0 else str(value)
    return value


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
    check_sweep(sweep, points)


def check_sweep(sweep: Sweep, points: int) -> None:
    """Refuse a sweep with no such range, or fewer points than these."""
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
