"""Range tests as JSON files; a file that was read holds the bits that were written.

The files are strict JSON: numbers that JSON has no word for are the strings "nan", "-nan", "inf"
and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfast.range_test._race_result import Candidate, Race
from lrfast.range_test._sweep import FloatArray, Sweep
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from lrfast.range_test._result import RangeTest

_FORMAT = 1
_CURVES = ("lrs", "losses", "smoothed", "derivative")


def save(result: RangeTest, path: str | Path) -> None:
    """Write every field of a result."""
    content = {field.name: _plain(getattr(result, field.name)) for field in fields(result)}
    text = json.dumps({"format": _FORMAT, **content})
    Path(path).write_text(text + "\n", encoding="utf-8")


def load(path: str | Path) -> dict[str, Any]:
    """Return the fields of the result that a file holds.

    Raises:
        ValueError: If the file is not what :func:`save` writes.
    """
    wanted = f"path must name a file that RangeTest.to_json wrote, got {str(path)!r}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{wanted}, which is no JSON: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{wanted}, which has no format")
    if content["format"] != _FORMAT:
        raise ValueError(
            f"{wanted} of format {content['format']!r}; this lrfast reads format {_FORMAT}"
        )
    try:
        return _decoded(content)
    except KeyError as error:
        raise ValueError(f"{wanted}, which lacks {error}") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, which is broken: {error}") from error


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


def _decoded(content: dict[str, Any]) -> dict[str, Any]:
    curves = {name: _vector(content[name]) for name in _CURVES}
    if "auto" not in content["suggestions"]:
        raise ValueError("it has no suggestion of rule 'auto'")
    repeats, race = content["repeats"], content["race"]
    sweeps = None if repeats is None else np.stack([_vector(row) for row in repeats])
    lengths = sorted({len(curve) for curve in curves.values()})
    if len(lengths) > 1 or (sweeps is not None and sweeps.shape[1] < lengths[0]):
        raise ValueError("its arrays have different lengths")
    if content["outcome"] not in ("completed", "diverged", "non-finite"):
        raise ValueError(f"its outcome is {content['outcome']!r}")
    return {
        **curves,
        "sweep": _sweep(content["sweep"]),
        "suggestions": MappingProxyType(
            {name: _suggestion(entry) for name, entry in content["suggestions"].items()}
        ),
        "outcome": content["outcome"],
        "seconds": float(content["seconds"]),
        "notes": tuple(content["notes"]),
        "repeats": sweeps,
        "snapshot_bytes": content["snapshot_bytes"],
        "race": None if race is None else _race(race),
    }


def _vector(values: list[float | str]) -> FloatArray:
    return np.array([float(value) for value in values])


def _sweep(entry: dict[str, Any]) -> Sweep:
    ranges = tuple((float(first), float(last)) for first, last in entry["ranges"])
    if not 0 <= entry["reference"] < len(ranges):
        raise ValueError(f"its sweep has no group {entry['reference']}")
    return Sweep(**{**entry, "ranges": ranges})


def _suggestion(entry: dict[str, Any]) -> Suggestion:
    span = entry.get("next_range")
    decoded = {
        "lr": _number(entry["lr"]),
        "confidence": float(entry["confidence"]),
        "base_lr": _number(entry.get("base_lr")),
        "next_range": None if span is None else (float(span[0]), float(span[1])),
    }
    return Suggestion(**{**entry, **decoded})


def _race(entry: dict[str, Any]) -> Race:
    candidates = tuple(
        Candidate(
            **{**row, "lr": float(row["lr"]), "losses": tuple(float(x) for x in row["losses"])}
        )
        for row in entry["candidates"]
    )
    return Race(**{**entry, "candidates": candidates, "seconds": float(entry["seconds"])})


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
