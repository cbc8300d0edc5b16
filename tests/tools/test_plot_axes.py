"""``ax=``: figures drawn into axes that are there already, which are returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from sweep_setups import Bench

import lrfast
from lrfast import plot


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    """Each drawing: the call, its arguments, and what its first panel shows."""
    bench = Bench()
    result, history = bench.find(num_iter=20), bench.tuner.history
    schedule = lrfast.schedules.one_cycle(20).with_weight_decay(lrfast.schedules.cosine(20))
    optimizer = lrfast.AdamW(bench.model.parameters(), lr=0.1, schedule=schedule)
    return {
        "RangeTest.plot": (result.plot, (None, [result]), "loss"),
        "RangeTest.compare": (result.compare, (result,), "smoothed loss"),
        "History.plot": (history.plot, (), "loss"),
        "Schedule.plot": (schedule.plot, (), "multiplier"),
        "plot_range_test": (plot.plot_range_test, (result,), "loss"),
        "plot_comparison": (plot.plot_comparison, ([result, result],), "smoothed loss"),
        "plot_history": (plot.plot_history, (history,), "loss"),
        "plot_history of none": (plot.plot_history, (lrfast.History(),), "loss"),
        "plot_schedule": (plot.plot_schedule, (schedule,), "multiplier"),
        "plot_schedules": (plot.plot_schedules, (optimizer,), "learning rate"),
    }


NAMES = [
    "RangeTest.plot", "RangeTest.compare", "History.plot", "Schedule.plot", "plot_range_test",
    "plot_comparison", "plot_history", "plot_history of none", "plot_schedule", "plot_schedules",
]  # fmt: skip


def lines(axes: Any) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axes.lines]


@pytest.mark.parametrize("name", NAMES)
def test_given_axes_show_the_first_panel(name: str, drawn: Any, tmp_path: Path) -> None:
    call, arguments, label = drawn[name]
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert call(*arguments, ax=right) is right
    own = call(*arguments)
    assert isinstance(own, Figure) and own is not figure
    assert lines(right) == lines(own.axes[0])
    assert right.get_ylabel() == own.axes[0].get_ylabel() == label
    assert right.get_xlabel() == own.axes[-1].get_xlabel() in ("learning rate", "step")
    assert right.get_yscale() == own.axes[0].get_yscale()
    assert figure.axes == [left, right] and not left.lines


@pytest.mark.parametrize("name", NAMES)
def test_a_path_saves_the_whole_figure(name: str, drawn: Any, tmp_path: Path) -> None:
    call, arguments, _ = drawn[name]
    _, part = Figure().subfigures(1, 2)
    axes = part.subplots()
    arguments = () if name == "RangeTest.plot" else arguments  # whose first one is the path
    assert call(*arguments, path=tmp_path / "x.png", ax=axes) is axes
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize("given", ["axes", 3, Figure(), [1]], ids=["text", "3", "figure", "list"])
@pytest.mark.parametrize("name", NAMES)
def test_what_are_no_axes(name: str, given: Any, drawn: Any) -> None:
    call, arguments, _ = drawn[name]
    with pytest.raises(TypeError, match="ax must be axes of matplotlib, got"):
        call(*arguments, ax=given)


def test_an_array_of_axes(drawn: Any) -> None:
    call, arguments, _ = drawn["RangeTest.plot"]
    with pytest.raises(TypeError, match=r"ax must be axes of matplotlib, .* pass one of several"):
        call(*arguments, ax=Figure().subplots(1, 2))
