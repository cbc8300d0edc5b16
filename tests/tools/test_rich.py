"""What ``rich.print`` makes of results: tables as wide as the terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from results import make_result
from rich.console import Console
from rich.table import Table
from tuners import make_tuner

from lrfast.suggest import Suggestion


def printed(result: Any, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width).print(result)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 120])
def test_a_range_test_fits(width: int) -> None:
    reason = "it [won] the race, as it trained well where neither its neighbours nor others did"
    result = make_result(suggestions=[Suggestion(2e-3, "verified", reason, 1.0)])
    shown = printed(result, width)
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.replace("\u2502", " ").split())
    assert "Range test: " in words and "2.0e-03" in words and "it [won] the race" in words
    table: Any = result.__rich__()
    assert isinstance(table, Table)
    styles = dict(zip(result.suggestions, (row.style for row in table.rows), strict=True))
    assert [rule for rule, style in styles.items() if style == "bold"] == ["verified"]


def test_a_recipe_shows_what_is_planned_and_what_was_applied() -> None:
    recipe = make_tuner("adamw").recipe()
    planned = printed(recipe, 100)
    assert "Planned" in planned and "Applied" not in planned
    recipe.run_next()
    shown = printed(recipe, 100)
    assert shown.startswith(planned.rstrip("\n")) and "Applied" in shown and "Rates of" in shown
    assert max(map(len, shown.splitlines())) <= 100
