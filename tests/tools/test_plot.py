"""Figures show what results hold, go to files, and touch nothing else."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import (
    FOUND,
    PLOTS,
    assert_is_png,
    curve,
    make_result,
    make_stage,
    panels,
    suggested,
    verticals,
)
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lrfast import History, schedules
from lrfast._utils.figures import centred_average
from lrfast.plot import limits, plot_comparison, plot_history, plot_range_test, plot_schedule
from lrfast.suggest import Suggestion

ROOT = Path(__file__).parents[2]


# The range test.


def test_range_test_shows_losses_and_derivative(tmp_path: Path) -> None:
    result = make_result()
    losses, slopes = panels(plot_range_test(result, tmp_path / "range.png", skip_start=0), 2)
    (lrs, raw), (same, line) = curve(losses, "loss"), curve(losses, "smoothed loss")
    count = len(lrs)
    np.testing.assert_array_equal((lrs, same), (result.lrs[:count],) * 2)
    np.testing.assert_array_equal(raw, result.losses[:count])
    np.testing.assert_array_equal(line, centred_average(result.losses)[:count])
    x, slope = slopes.lines[0].get_xydata().T
    np.testing.assert_allclose(slope[:-2], np.gradient(line, np.log(x))[:-2], rtol=1e-9)
    assert losses.get_xscale() == slopes.get_xscale() == "log"
    assert (slopes.get_xlabel(), losses.get_ylabel()) == ("learning rate", "loss")
    assert slopes.get_ylabel() == "d loss / d ln(lr)"
    assert_is_png(tmp_path / "range.png")


def test_the_smoothed_line_does_not_lag() -> None:
    """The middle of a fall stays where it is, which an EMA moves by a few points."""
    steps = np.arange(100)
    fall = 1 / (1 + np.exp((steps - 50) / 4))
    middle = np.interp(-0.5, -centred_average(fall), steps)
    assert abs(middle - 50) < 0.1
    exploded = np.append(fall, [1e9, np.inf])
    np.testing.assert_allclose(centred_average(exploded)[:90], centred_average(fall)[:90])
    gap = np.where(steps == 20, np.nan, 3.0)
    np.testing.assert_allclose(centred_average(gap), 3.0)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (None, ["auto"]),
        ("all", ["auto", "minimum", "steep", "slide", "other"]),
        ("steep", ["steep"]),
        (["slide", "auto", "valley"], ["slide", "auto"]),
        ([], []),
    ],
)
def test_the_chosen_suggestions_are_marked(rules: Any, expected: list[str]) -> None:
    result = make_result()
    losses, slopes = panels(result.plot(rules=rules), 2)
    marked = [line for line in losses.lines if line.get_linestyle() == "None"]
    assert [str(line.get_label()) for line in marked] == [
        f"{name}: {FOUND[name]:.1e}" for name in expected
    ]
    assert len({line.get_marker() for line in marked}) == len(marked)
    for line, name in zip(marked, expected, strict=True):
        (x,), (y,) = line.get_xdata(), line.get_ydata()
        assert x == FOUND[name]
        height = np.interp(x, result.lrs, centred_average(result.losses))
        assert y == pytest.approx(height, rel=1e-12)
        chosen = to_hex(str(line.get_markerfacecolor())) != "#ffffff"
        assert chosen == (name == "auto") == (line.get_marker() == "*")
    lines = [3e-3] if "auto" in expected else []
    assert verticals(losses) == verticals(slopes) == lines


def test_a_rule_that_is_unknown() -> None:
    with pytest.raises(ValueError, match=r'rules must be "all" or some of auto, .*, got \'best\''):
        make_result().plot(rules=["auto", "best"])


def test_the_legend_hides_no_data() -> None:
    figure = make_result().plot(rules="all")
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:2] == ["loss", "smoothed loss"] and len(labels) == 7
    figure.draw_without_rendering()  # lays it out
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"outcome": "diverged"}, "diverged at lr 1"),
        ({"outcome": "non-finite"}, "loss not finite at lr 1"),
        ({"outcome": "completed"}, "loss lowest at lr 0.1, not diverged up to lr 1"),
        ({"outcome": "completed", "falls": True}, "loss never rose up to lr 1"),
    ],
)
def test_the_title_says_what_happened(fields: dict[str, Any], title: str) -> None:
    if fields.pop("falls", False):
        fields["losses"] = np.linspace(3, 1, 60)
    result = make_result(**fields)
    losses, _ = panels(result.plot(), 2)
    expected = re.escape(f"Range test: {title}").replace(r"lr\ 0\.1,", r"lr 0\.\d+,")
    assert re.fullmatch(expected, losses.get_title()), losses.get_title()


def test_the_flat_part_and_the_explosion_are_left_out() -> None:
    lrs = np.geomspace(1e-7, 10, 161)
    losses = 2 / (1 + (lrs / 1e-2) ** 2) + 1e4 * (lrs > 1.0)
    result = make_result(161, {"auto": 3e-3}, lrs=lrs, losses=losses)
    shown, _ = curve(panels(result.plot(), 2)[0], "loss")
    assert 1e-5 < shown[0] < 3e-3 / 1.8 and 0.9 < shown[-1] < 2.0
    marked = make_result(161, {"auto": 3e-3, "flat": 1e-6}, lrs=lrs, losses=losses)
    shown, _ = curve(panels(marked.plot(rules="all"), 2)[0], "loss")
    assert shown[0] <= 1e-6  # with every mark
    shown, _ = curve(panels(result.plot(skip_start=3, skip_end=7), 2)[0], "loss")
    np.testing.assert_array_equal(shown, lrs[3:-7])


@pytest.mark.parametrize("skip", [{"skip_start": -1}, {"skip_end": 1.5}, {"skip_start": 59}])
def test_skips_that_leave_nothing(skip: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="skip_"):
        make_result().plot(**skip)


def test_axes_of_ones_own(tmp_path: Path) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert make_result().plot(tmp_path / "both.png", ax=right) is right
    assert not left.lines and right.get_xscale() == "log"
    assert [str(line.get_label()) for line in right.lines[:2]] == ["loss", "smoothed loss"]
    assert len(figure.axes) == 2 and right.get_legend() is not None
    assert_is_png(tmp_path / "both.png")


def test_ticks_are_short() -> None:
    figure = make_result(80, lrs=np.geomspace(1e-6, 10, 80)).plot(skip_start=0, skip_end=0)
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels() if text.get_text()]
    assert {"1e-4", "1e-3", "0.01", "0.1", "1"} <= set(labels)
    near = make_result(80, {"auto": 0.03}, lrs=np.geomspace(0.01, 0.1, 80)).plot(skip_start=0)
    near.draw_without_rendering()
    labels = [text.get_text() for text in near.axes[1].get_xticklabels() if text.get_text()]
    assert {"0.02", "0.05"} <= set(labels)


def test_the_divergence_does_not_flatten_the_rest() -> None:
    result = make_result()
    losses, slopes = panels(plot_range_test(result), 2)
    low, high = losses.get_ylim()
    assert low < result.losses.min() and high < 0.6 * result.losses.max()
    assert high > np.quantile(result.losses, 0.9)
    low, high = slopes.get_ylim()
    assert low < 0 < high < 0.6 * result.derivative.max()


@pytest.mark.parametrize("points", [2, 3, 7])
def test_short_curves(points: int, tmp_path: Path) -> None:
    result = make_result(points, {"auto": None})
    losses, slopes = panels(plot_range_test(result, tmp_path / "short.png"), 2)
    assert verticals(losses) == verticals(slopes) == [] and len(losses.lines) == 2
    assert_is_png(tmp_path / "short.png")


def test_a_sweep_whose_first_loss_is_not_finite(tmp_path: Path) -> None:
    nan = np.array([np.nan])
    curves: Any = {"losses": nan, "smoothed": nan, "derivative": nan}
    result = make_result(1, dict.fromkeys(FOUND), **curves, outcome="non-finite")
    plot_range_test(result, tmp_path / "nan.png")
    assert_is_png(tmp_path / "nan.png")


def test_a_sweep_without_points(tmp_path: Path) -> None:
    empty = make_result(0, {"auto": None}, derivative=np.empty(0))
    empty.plot(tmp_path / "empty.png")
    assert_is_png(tmp_path / "empty.png")
    empty.compare(empty, path=tmp_path / "none.png")
    (axes,) = panels(empty.compare(make_result(), path=tmp_path / "one.png"), 1)
    assert axes.get_xlim() == (1e-6 / 1.1, 1.1)


def test_the_verified_rate_is_the_one_marked() -> None:
    suggestions = suggested(FOUND, Suggestion(2e-3, "verified", "it won", 1.0))
    losses, slopes = panels(make_result(suggestions=suggestions).plot(), 2)
    filled = [
        str(line.get_label())
        for line in losses.lines
        if line.get_linestyle() == "None" and to_hex(str(line.get_markerfacecolor())) != "#ffffff"
    ]
    assert filled == ["verified: 2.0e-03"]
    assert [line.get_marker() for line in losses.lines if line.get_label() in filled] == ["*"]
    assert verticals(losses) == verticals(slopes) == [2e-3]


def test_rules_that_the_plot_does_not_know_have_markers_of_their_own() -> None:
    found = {"auto": 1e-3} | {f"new {index}": 1e-3 for index in range(8)}
    losses, _ = panels(make_result(found=found).plot(rules="all"), 2)
    markers = [line.get_marker() for line in losses.lines if line.get_linestyle() == "None"]
    assert len(markers) == len(set(markers)) == 9


def test_a_pair_is_two_marks() -> None:
    suggestions = suggested(FOUND, Suggestion(3e-2, "cyclic", "a pair", 0.9, base_lr=4e-3))
    losses, _ = panels(make_result(suggestions=suggestions).plot(rules=["cyclic"]), 2)
    lrs, _ = curve(losses, "cyclic: 4.0e-03 to 3.0e-02")
    assert list(lrs) == [4e-3, 3e-2] and not losses.patches


def test_repeats_are_a_band(tmp_path: Path) -> None:
    plain = make_result()
    repeats = np.stack([plain.losses - 1, plain.losses + 2, plain.losses, plain.losses + 1])
    repeats[:, -1] = np.nan
    result = make_result(repeats=np.pad(repeats, ((0, 0), (0, 2)), constant_values=np.nan))
    losses, _ = panels(result.plot(tmp_path / "band.png", skip_start=0, skip_end=0), 2)
    (band,) = losses.collections
    assert band.get_label() == "quartiles of 4 sweeps"
    (path,) = band.get_paths()
    low, high = np.quantile(repeats[:, :-1], (0.25, 0.75), axis=0)
    for edge in (low, high):
        for point in zip(plain.lrs[:-1], edge, strict=True):
            assert np.isclose(path.vertices, point, rtol=1e-12).all(axis=1).any()
    assert not panels(plain.plot(), 2)[0].collections
    assert_is_png(tmp_path / "band.png")


def test_others_are_drawn_behind() -> None:
    result, other = make_result(), make_result(40)
    losses, slopes = panels(result.plot(others=[other, make_result(30)]), 2)
    line = centred_average(other.losses)
    np.testing.assert_array_equal(curve(losses, "run 2"), (other.lrs, line))
    np.testing.assert_array_equal(slopes.lines[0].get_xydata().T[0], other.lrs)
    assert len(curve(losses, "run 3")[0]) == 30
    labels = [str(line.get_label()) for line in losses.lines]
    assert labels[:4] == ["run 2", "run 3", "loss", "smoothed loss"]
    assert verticals(losses) == [3e-3]
    alone = panels(result.plot(), 2)[0]
    assert losses.get_ylim() == alone.get_ylim()


def test_limits() -> None:
    values = np.array([1.0, 2.0, 3.0, np.nan, np.inf, -np.inf, 1e301])
    assert limits(values) == pytest.approx((1 - 0.19, 3 + 0.19))
    steep = np.append(np.linspace(1, 2, 99), 1000.0)
    low, high = limits(steep) or (0, 0)
    assert 0.8 < low < 1 and 2 < high < 2.4
    assert limits(np.array([5.0, 5.0])) == (4.5, 5.5) and limits(np.zeros(3)) == (-0.1, 0.1)
    assert limits(np.array([np.nan])) is None and limits(np.empty(0)) is None


# Comparisons.


def test_comparison_shows_every_run(tmp_path: Path) -> None:
    runs = [make_result(), make_result(40, {"auto": 1e-2}), make_result(20, {"auto": None})]
    figure = runs[0].compare(*runs[1:], path=tmp_path / "runs.png", labels=["SGD", "Adam", "Lion"])
    (axes,) = panels(figure, 1)
    names = {
        "SGD (diverged, auto: 3.0e-03)": runs[0],
        "Adam (diverged, auto: 1.0e-02)": runs[1],
        "Lion (diverged, auto: no suggestion)": runs[2],
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    styles = set()
    for label, run in names.items():
        np.testing.assert_array_equal(curve(axes, label), (run.lrs, centred_average(run.losses)))
        (line,) = [line for line in axes.lines if line.get_label() == label]
        styles.add((line.get_color(), line.get_linestyle()))
    assert len({color for color, _ in styles}) == len({style for _, style in styles}) == 3
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    points = [(float(star.get_xdata()[0]), float(star.get_ydata()[0])) for star in stars]
    expected = [
        (rate, np.interp(rate, run.lrs, centred_average(run.losses)))
        for rate, run in zip((3e-3, 1e-2), runs, strict=False)
    ]
    np.testing.assert_allclose(points, expected, rtol=1e-12)
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "smoothed loss"
    assert_is_png(tmp_path / "runs.png")


def test_comparison_counts_runs_and_labels() -> None:
    result = make_result()
    (axes,) = panels(result.compare(result), 1)
    labels = [str(line.get_label()) for line in axes.lines if line.get_marker() != "*"]
    assert [label.split(" (")[0] for label in labels] == ["run 1", "run 2"]
    with pytest.raises(ValueError, match="results must hold two range tests or more, got 1"):
        result.compare()
    with pytest.raises(ValueError, match="labels must be one per range test, 2 of them, got 1"):
        plot_comparison([result, result], labels=["one"])


def looks(axes: Any) -> list[Any]:
    """What is left of the lines in black and white."""
    drawn = [line for line in axes.lines if line.get_marker() != "*" and len(line.get_xdata()) > 2]
    return [(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in drawn]


@pytest.mark.parametrize("count", [3, 9])
def test_lines_differ_without_their_colours(count: int) -> None:
    result, others = make_result(), [make_result(30 + index) for index in range(count - 1)]
    stage = make_stage("all", 20)
    wide = replace(stage, rates=np.geomspace(1e-5, 1e-2, count) * np.ones((20, 1)))
    shown = [
        *panels(result.plot(others=others), 2),
        *panels(result.compare(*others), 1),
        *panels(plot_schedule(schedules.cosine(30), rates=list(np.geomspace(1e-4, 1, count))), 1),
        panels(History([wide]).plot(), 3)[2],
    ]
    for axes in shown:
        assert len(looks(axes)) >= count and len(set(looks(axes))) == len(looks(axes))


# Histories.


def test_history_over_stages(tmp_path: Path) -> None:
    history = History([make_stage("head", 10), make_stage("all", 20)])
    losses, metrics, rates = panels(history.plot(tmp_path / "history.png"), 3)
    x, y = curve(metrics, "accuracy")
    assert (list(x), list(y)) == ([5, 10, 20, 30], [0.9] * 4)
    x, y = curve(losses, "training loss")
    np.testing.assert_array_equal((x, y), (np.arange(30), history.losses))
    x, y = curve(losses, "validation loss")
    assert (list(x), list(y)) == ([5, 10, 20, 30], [0.5] * 4)
    assert verticals(losses) == [0, 10]
    shown = [line.get_xydata().T for line in rates.lines]
    assert len(shown) == 4
    for place, (start, stage) in enumerate(zip((0, 10), history.stages, strict=True)):
        for group in range(2):
            x, y = shown[2 * place + group]
            np.testing.assert_array_equal(x, start + np.arange(len(stage.losses)))
            np.testing.assert_array_equal(y, stage.rates[:, group])
    assert rates.get_yscale() == "linear" and rates.get_xlabel() == "step"
    legend = rates.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["group 0", "group 1"]
    assert_is_png(tmp_path / "history.png")


def test_history_without_validation() -> None:
    losses, _ = panels(plot_history(History([make_stage("head", 10, validation=False)])), 2)
    assert not any(line.get_label() == "validation loss" for line in losses.lines)


def test_an_empty_history() -> None:
    panels(plot_history(History()), 2)


# matplotlib.


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_without_matplotlib(plot: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = r"plots need matplotlib: install it with `pip install 'lrfast\[plot\]'`"
    with pytest.raises(ImportError, match=message):
        plot()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_a_notebook_shows_a_figure_and_its_copies(plot: Callable[[], Any]) -> None:
    figure = plot()
    for shown in (figure, pickle.loads(pickle.dumps(figure)), copy.deepcopy(figure)):
        assert shown._repr_png_().startswith(b"\x89PNG") and shown._repr_png_.args[0] is shown


def test_no_pyplot_and_no_backend(tmp_path: Path) -> None:
    """In a process of its own, for others may have imported them here."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
import matplotlib
before = list(dict.items(matplotlib.rcParams))  # asking for the backend by its key would set it
from figures import PLOTS
for plot in PLOTS.values():
    plot().savefig({str(tmp_path / "plot.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert list(dict.items(matplotlib.rcParams)) == before
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
