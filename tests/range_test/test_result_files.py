"""Files of range tests hold every bit; what is no such file is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from results import INF, NAN, ONE_GROUP, make_result
from torch import nn

import lrfast
from lrfast import RangeTest
from lrfast.range_test._result import Candidate, Race
from lrfast.range_test._sweep import Sweep
from lrfast.suggest import Suggestion

CURVES = ("lrs", "losses", "smoothed", "derivative")


@pytest.mark.parametrize("ranges", [ONE_GROUP, ((1e-7, 0.1), (1e-6, 1.0), (0.3, 0.3))])
def test_csv_holds_every_digit_of_every_group(ranges: Any, tmp_path: Path) -> None:
    losses = [1 / 3, NAN, INF, -0.0, 5e-324]
    reference = min(len(ranges) - 1, 1)
    sweep = Sweep("exp", 9, ranges, reference)
    lrs = sweep.table()[:5, reference]
    result = make_result(losses, ranges=ranges, reference=reference, sweep=sweep, lrs=lrs)
    result.to_csv(tmp_path / "curve.csv")
    with open(tmp_path / "curve.csv", newline="") as file:
        header, *rows = csv.reader(file)
    columns = np.array(rows, dtype=np.float64).T
    for column, name in zip(columns, CURVES, strict=False):
        assert column.tobytes() == getattr(result, name).tobytes()
    extra = [] if len(ranges) == 1 else ["lr_0", "lr_1", "lr_2"]
    assert header == ["lr", "loss", "smoothed", "derivative", *extra]
    if extra:
        assert columns[4:].tobytes() == sweep.table()[:5].T.tobytes()
        assert columns[5].tobytes() == lrs.tobytes()


def make_full(values: Any) -> RangeTest:
    """A result with no field at its default, whose curves hold these numbers."""
    array = np.array(values, dtype=np.float64)
    candidates = (
        Candidate(1e-3, "steep", (2.0, 1.0), True),
        Candidate(0.1, "minimum", (2.0, NAN, INF, -INF), False),
    )
    return make_result(
        array,
        lr=1 / 3,
        ranges=((1e-7, 0.1), (1 / 3, 1 / 3), (1e-6, 1 / 7)),
        reference=2,
        suggestions=[
            Suggestion(0.1, "cyclic", "nan", 0.5, 3, 0.01, (1e-9, 1 / 3)),
            Suggestion(INF, "own", "inf", INF, 0, INF, (-INF, INF)),
            Suggestion(None, "slide", 'a "quoted" η', 0.0),
            Suggestion(2e-3, "verified", "it won", 1.0, np.int64(2)),  # type: ignore[arg-type]
        ],
        derivative=array[::-1].copy(),
        outcome="non-finite",
        seconds=0.1 + 0.2,
        notes=("nan", "a note"),
        repeats=np.stack([array, array[::-1]]),
        snapshot_bytes=2**40,
        race=Race(candidates, 50, "validation", 1 / 3),
    )


def assert_same(one: RangeTest, other: RangeTest) -> None:
    for name in (*CURVES, "repeats"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours is None:
            assert theirs is None
        else:
            assert theirs.dtype == np.float64 and ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes(), name
    assert dict(one.suggestions) == dict(other.suggestions)
    assert isinstance(other.suggestions, MappingProxyType)
    for name in ("sweep", "outcome", "seconds", "notes", "snapshot_bytes"):
        assert getattr(one, name) == getattr(other, name), name
    # The representation of a float is exact, and a NaN equals no other.
    assert repr(one.race) == repr(other.race)


@given(st.lists(st.floats(allow_nan=False, width=64) | st.sampled_from([NAN, -NAN]), min_size=1))
def test_json_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "result.json"
    for result in (make_full(values), make_result(values)):
        result.to_json(path)
        assert_same(result, RangeTest.from_json(path))


def test_json_of_a_sweep_without_points(tmp_path: Path) -> None:
    result = make_result([], lr=None)
    result.to_json(tmp_path / "result.json")
    assert_same(result, RangeTest.from_json(tmp_path / "result.json"))


def test_json_is_strict_and_says_its_format(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    make_full([1.0, NAN, INF, -INF]).to_json(path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["format"] == 1
    assert content["losses"] == [1.0, "nan", "inf", "-inf"]
    assert content["suggestions"]["cyclic"]["next_range"] == [1e-9, 1 / 3]
    for name, entry in content["suggestions"].items():
        assert set(entry) == set(asdict(Suggestion(None, name, "", 0.0)))


def test_the_bits_of_a_nan_have_a_sign(tmp_path: Path) -> None:
    negative = np.copysign(NAN, -1.0)
    result = make_result([NAN, negative, 0.0, -0.0])
    result.to_json(tmp_path / "result.json")
    losses = RangeTest.from_json(tmp_path / "result.json").losses
    assert np.signbit(losses).tolist() == [False, True, False, True]


BROKEN: dict[str, tuple[Any, str]] = {
    "text": ("no JSON", "which is no JSON"),
    "cut off": (lambda c: json.dumps(c)[:-9], "which is no JSON"),
    "another JSON": ([1, 2], "which has no format"),
    "no format": (lambda c: [c.pop("format"), c][1], "which has no format"),
    "a later format": (lambda c: c | {"format": 2}, "of format 2; this lrfast reads format 1"),
    "a field is missing": (lambda c: [c.pop("repeats"), c][1], "which lacks 'repeats'"),
    "no auto": (lambda c: c | {"suggestions": {}}, "broken: it has no suggestion of rule 'auto'"),
    "lengths": (lambda c: c | {"losses": [1.0]}, "broken: its arrays have different lengths"),
    "repeats": (lambda c: c | {"repeats": [[1.0]]}, "broken: its arrays have different lengths"),
    "ragged": (lambda c: c | {"repeats": [[1.0] * 4, [1.0]]}, "broken: "),
    "null": (lambda c: c | {"losses": [1.0, None, 1.0, 1.0]}, "broken: "),
    "huge": (lambda c: c | {"losses": [10**400, 1, 1, 1]}, "broken: "),
    "outcome": (lambda c: c | {"outcome": "fine"}, "broken: outcome must be one of .*, got 'fine'"),
    "group": (lambda c: [c["sweep"].update(reference=3), c][1], "broken: its sweep has no group 3"),
    "sweep": (lambda c: c | {"sweep": 3}, "broken: "),
    "suggestion": (lambda c: [c["suggestions"]["auto"].update(new=3), c][1], "broken: .*'new'"),
    "a list": (lambda c: c | {"suggestions": ["auto"]}, "broken: "),
    "span": (lambda c: [c["suggestions"]["auto"].update(next_range=[1]), c][1], "broken: "),
    "race": (lambda c: c | {"race": [1]}, "broken: "),
    "rows": (lambda c: c | {"losses": [[1.0]] * 4}, "broken: its arrays have different lengths"),
    "no repeat": (lambda c: c | {"repeats": []}, "broken: its arrays have different lengths"),
    "a step": (lambda c: [c["sweep"].update(num_iter=1), c][1], "broken: num_iter must be"),
    "a part": (lambda c: [c["sweep"].pop("mode"), c][1], "which lacks 'mode'"),
    "whole": (lambda c: [c["race"].update(steps=True), c][1], "broken: steps must be a whole"),
    "a word": (lambda c: c | {"seconds": "long"}, "broken: seconds must be a number, got 'long'"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    make_full([1.0, 2.0, 3.0, 4.0]).to_json(path)
    content = change(json.loads(path.read_text())) if callable(change) else change
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        RangeTest.from_json(path)
    start = f"path must name a file that RangeTest.to_json wrote, got {str(path)!r}"
    assert str(caught.value).startswith(start)


def test_a_sweep_of_a_model_survives_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    data = [(torch.ones(4, 3), torch.full((4, 1), 5.0))]
    result = lrfast.lr_find(model, optimizer, data, nn.functional.mse_loss, progress=False)
    result.to_json(tmp_path / "result.json")
    read = RangeTest.from_json(tmp_path / "result.json")
    assert_same(result, read)
    rates = read.apply(optimizer)
    assert rates == result.suggested_lrs() == [optimizer.param_groups[0]["lr"]]
