"""The plot in plain text: what it draws to the character, and what holds for any curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import INF, NAN, make_result

from lrfast.suggest import Suggestion

VALLEY = (3.0, 2.9, 2.0, 1.0, 1.5, NAN, 2.5)
UNICODE = """\
  3.2│⠤⠤⠤⣀⡀       ┊
     │    ⠈⠢⡀     ┊            ⢀
     │      ⠈⠒⢄   ┊
 1.75│         ⠑⡄ ┊
     │          ⠈⠢⡀ ⣀⠤⠒⠁
 0.78│            ⠈⠋
     └┴───────────▲────────────┴
      1e-06     1e-03      1e+00
      ▲ auto: 1.0e-03"""
ASCII = """\
  3.2|***         :
     |  *****     :            *
     |       **   :
 1.75|         ** :
     |           *******
 0.78|            *
     ++-----------^------------+
      1e-06     1e-03      1e+00
      ^ auto: 1.0e-03"""


@pytest.mark.parametrize(("ascii", "expected"), [(False, UNICODE), (True, ASCII)])
def test_to_the_character(ascii: bool, expected: str) -> None:
    """Each sees a NaN between 1.5 and 2.5, and leaves a gap there."""
    shown = make_result(VALLEY, lr=1e-3).terminal_plot(32, 9, ascii=ascii)
    assert shown.splitlines() == expected.splitlines()


def curve_of(lines: list[str], height: int) -> np.ndarray:
    """Where an ASCII plot has the curve, [rows, columns]."""
    rows = [line.split("|", 1)[1] for line in lines[: height - 3]]
    width = max(map(len, rows))
    return np.array([[cell == "*" for cell in row.ljust(width)] for row in rows])


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    st.lists(numbers, max_size=30),
    st.none() | st.floats(1e-9, 1e3),
    st.integers(32, 120),
    st.integers(8, 40),
    st.booleans(),
)
def test_any_curve_fits_its_frame(
    losses: list[float], lr: float | None, width: int, height: int, ascii: bool
) -> None:
    result = make_result(losses, lr=lr)
    shown = result.terminal_plot(width, height, ascii)
    lines = shown.splitlines()
    assert shown.isascii() or not ascii
    assert shown.replace("\n", "").isprintable()
    if not losses:
        assert shown == "no points to draw"
        return
    assert len(lines) == height and max(map(len, lines)) <= width
    inside = lr is not None and result.lrs[0] <= lr <= result.lrs[-1]
    arrow = "^" if ascii else "▲"
    assert (arrow in lines[-3]) == (arrow in lines[-1]) == inside
    assert lines[-1].endswith("auto: none" if lr is None else f"auto: {lr:.1e}")
    if not any(abs(loss) < 1e300 for loss in losses):
        assert not any("*" in line or "⠀" < line[-1] <= "⣿" for line in lines[:-3] if line)


@pytest.mark.parametrize("slope", [-2.0, -1e-9, 0.0, 1e-9, 2.0, 1e30])
@pytest.mark.parametrize("points", [2, 3, 10, 500])
def test_a_straight_line_is_drawn_as_one(slope: float, points: int) -> None:
    result = make_result(1.0 + slope * np.linspace(0, 1, points), lr=None)
    curve = curve_of(result.terminal_plot(60, 20, ascii=True).splitlines(), 20)
    assert curve.any(axis=0).all(), "a column without the line"
    heights = [-np.flatnonzero(column).mean() for column in curve.T]
    assert np.all(np.diff(heights) * np.sign(slope) >= 0)
    if slope == 0:
        assert set(heights) == {-8.0}  # the middle of 17 rows
    else:
        assert abs(heights[0] - heights[-1]) > 11


def test_a_long_caption_keeps_its_digits() -> None:
    pair = Suggestion(2.5e-1, "verified", "a pair", 0.9, base_lr=1e-300)
    losses = np.linspace(-1e100, -2e100, 9)
    lines = make_result(losses, suggestions=[pair]).terminal_plot(32, 9).splitlines()
    assert lines[-1].strip() == "▲ verified: 1.0e-300 to 2.5e-01" and max(map(len, lines)) == 32


def test_one_point_stands_in_the_middle() -> None:
    lines = make_result([2.0], lr=1e-6).terminal_plot(42, 10, ascii=True).splitlines()
    assert [line.count("*") for line in lines] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert lines[3].index("*") == lines[-3].index("^") == 23  # of 5 to 41
    assert [line.split("|")[0].strip() for line in lines[:7]] == ["2.2", "", "", "2", "", "", "1.8"]
    assert lines[-2].strip() == "1.0e-06"


def test_a_curve_leaves_above_and_an_infinite_loss_is_above() -> None:
    shown = make_result([2.0, 1.0, INF, 1.0, 2.0], lr=None).terminal_plot(60, 20, ascii=True)
    curve = curve_of(shown.splitlines(), 20)
    middle = curve[:, curve.shape[1] // 2 - 5 : curve.shape[1] // 2 + 5]
    assert not middle.any() and curve[0].sum() >= 2
    np.testing.assert_array_equal(curve.any(axis=0), curve.any(axis=0)[::-1])


def test_decades_stand_where_they_are() -> None:
    result = make_result(np.linspace(3, 1, 50), ranges=((2e-8, 5.0),), lr=1e-4)
    lines = result.terminal_plot(100, 10).splitlines()
    floor, labels = lines[-3], lines[-2]
    columns = len(floor) - floor.index("└") - 1
    span = np.log10(5.0) - np.log10(2e-8)
    found = [text for text in labels.split() if text]
    assert found == ["1e-07", "1e-06", "1e-05", "1e-04", "1e-03", "1e-02", "1e-01", "1e+00"]
    for text in found:
        place = (np.log10(float(text)) - np.log10(2e-8)) / span * (columns - 1)
        at = floor.index("└") + 1 + round(place)
        assert floor[at] == ("▲" if text == "1e-04" else "┴")
        assert labels[at - 2 : at + 3] == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 31}, "width must be a whole number, 32 or more, got 31"),
        ({"height": 7}, "height must be a whole number, 8 or more, got 7"),
        ({"width": 40.0}, "width must be a whole number, 32 or more, got 40.0"),
        ({"height": True}, "height must be a whole number, 8 or more, got True"),
    ],
)
def test_no_room(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_result().terminal_plot(**options)
