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
from lrfast.range_test._race_result import Candidate, Race
from lrfast.range_test._sweep import FloatArray, Sweep
from lrfast.suggest import Suggestion

if TYPE_CHECKING:
    from lrfast.range_test._result import RangeTest

_FORMAT = 1
_WORDS = ("nan", "-nan", "inf", "-inf")
_SUGGESTION = {field.name for field in fields(Suggestion)}
_CURVES = ("lrs", "losses", "smoothed", "derivative")


def save(result: RangeTest, path: str | Path) -> None:
    """Write every field of a result."""
    content = {field.name: _plain(getattr(result, field.name)) for field in fields(result)}
    text = json.dumps({"format": _FORMAT, **content})
    with replacing(path, encoding="utf-8") as file:
        file.write(text + "\n")


def load(path: str | Path) -> dict[str, Any]:
    """Return the fields of the result that a file holds.

    Raises:
        ValueError: If the file is not what :func:`save` writes.
    """
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
        return _decoded(content)
    except KeyError as error:
        raise ValueError(f"{wanted}, which lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
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
        raise ValueError(f"its outcome is {short_repr(content['outcome'])}")
    return {
        **curves,
        "sweep": _sweep(content["sweep"], lengths[0]),
        "suggestions": MappingProxyType(
            {
                check_str("a rule", name): _suggestion(entry)
                for name, entry in check_dict("suggestions", content["suggestions"]).items()
            }
        ),
        "outcome": content["outcome"],
        "seconds": _float(content["seconds"]),
        "notes": tuple(check_str("notes", note) for note in check_list("notes", content["notes"])),
        "repeats": sweeps,
        "snapshot_bytes": check_int("snapshot_bytes", content["snapshot_bytes"]),
        "race": None if race is None else _race(race),
    }


def _vector(values: Any) -> FloatArray:
    return np.array([_float(value) for value in check_list("a curve", values)], dtype=np.float64)


def _sweep(entry: dict[str, Any], points: int) -> Sweep:
    ranges = tuple(_pair("ranges", span) for span in check_list("ranges", entry["ranges"], least=1))
    for first, last in ranges:
        check_finite(
            "last of ranges", last, least=check_finite("first of ranges", first, least=0.0)
        )
        if first == 0 < last:
            raise ValueError(f"its sweep begins at {first}")
    if check_int("reference", entry["reference"]) >= len(ranges):
        raise ValueError(f"its sweep has no group {entry['reference']}")
    first, last = ranges[entry["reference"]]
    if not first < last:
        raise ValueError(f"its sweep goes from {first} to {last}")
    return Sweep(
        mode=check_str("mode", entry["mode"], ("exp", "linear")),  # type: ignore[arg-type]
        num_iter=check_int("num_iter", entry["num_iter"], least=max(points, 2)),
        ranges=ranges,
        reference=entry["reference"],
    )


def _suggestion(entry: dict[str, Any]) -> Suggestion:
    unknown = check_dict("a suggestion", entry).keys() - _SUGGESTION
    if unknown:
        raise ValueError(f"a suggestion has {short_repr(sorted(unknown))}")
    span, index = entry.get("next_range"), entry.get("index")
    return Suggestion(
        lr=_optional(entry["lr"]),
        rule=check_str("rule", entry["rule"]),
        reason=check_str("reason", entry["reason"]),
        confidence=_float(entry["confidence"]),
        index=None if index is None else check_int("index", index),
        base_lr=_optional(entry.get("base_lr")),
        next_range=None if span is None else _pair("next_range", span),
    )


def _race(entry: dict[str, Any]) -> Race:
    candidates = tuple(
        Candidate(
            lr=_float(row["lr"]),
            rule=check_str("rule", row["rule"]),
            losses=tuple(_float(loss) for loss in check_list("losses", row["losses"])),
            winner=check_bool("winner", row["winner"]),
        )
        for row in check_list("candidates", entry["candidates"])
    )
    return Race(
        candidates=candidates,
        steps=check_int("steps", entry["steps"]),
        judged_by=check_str("judged_by", entry["judged_by"], ("validation", "training")),  # type: ignore[arg-type]
        seconds=_float(entry["seconds"]),
    )


def _pair(name: str, span: Any) -> tuple[float, float]:
    first, last = check_list(name, span)
    return _float(first), _float(last)


def _float(value: Any) -> float:
    """A number, or one of the words for those that JSON has none for."""
    if isinstance(value, str) and value in _WORDS:
        return float(value)
    return float(check_float("a number", value))


def _optional(value: Any) -> float | None:
    return None if value is None else _float(value)
