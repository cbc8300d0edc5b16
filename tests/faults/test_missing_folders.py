"""Files that cannot be written: the error names the path that was given."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_setups import Bench

import lrfast
from lrfast.plot import plot_comparison, plot_schedules


@pytest.fixture(scope="module")
def writers() -> dict[str, Callable[[Any], Any]]:
    bench = Bench()
    result, tuner = bench.find(), bench.tuner
    schedule = lrfast.schedules.cosine(9)
    planned = lrfast.SGD(bench.model.parameters(), 0.1, schedule=schedule)
    retest = lrfast.Retest(bench.model, bench.optimizer, bench.batches)
    return {
        "RangeTest.plot": result.plot,
        "RangeTest.to_json": result.to_json,
        "RangeTest.to_csv": result.to_csv,
        "RangeTest.compare": lambda path: result.compare(result, path=path),
        "FineTuner.save": tuner.save,
        "History.to_csv": tuner.history.to_csv,
        "History.plot": tuner.history.plot,
        "Retest.to_csv": retest.to_csv,
        "Schedule.plot": schedule.plot,
        "plot_schedules": lambda path: plot_schedules(planned, path=path),
        "plot_comparison": lambda path: plot_comparison([result, result], path),
    }


NAMES = [
    "RangeTest.plot", "RangeTest.to_json", "RangeTest.to_csv", "RangeTest.compare",
    "FineTuner.save", "History.to_csv", "History.plot", "Retest.to_csv", "Schedule.plot",
    "plot_schedules", "plot_comparison",
]  # fmt: skip


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_missing(name: str, kind: Any, writers: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "x.png"
    with pytest.raises(FileNotFoundError, match="path must lie in a folder that exists") as caught:
        writers[name](kind(path))
    assert caught.value.filename == str(path) and caught.value.errno == errno.ENOENT
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_the_system_refuses(name: str, writers: Any, tmp_path: Path) -> None:
    writers[name](tmp_path / f"{'x' * 251}.png")  # the longest
    path = tmp_path / f"{'y' * 252}.png"
    with pytest.raises(OSError, match="too long") as caught:
        writers[name](path)
    assert caught.value.filename == str(path) and ".tmp" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_where_a_folder_must_be(writers: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="path must lie in a folder that exists"):
        writers["RangeTest.to_json"](tmp_path / "runs" / "x.json")
