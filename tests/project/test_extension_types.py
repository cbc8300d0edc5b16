"""lrfast/_C.pyi against the compiled module: names, arguments, and the fields of a schedule."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lrfast import schedules
from lrfast._utils.extension import extension
from lrfast.schedules._segments import EncodedSchedule, EncodedSegment, EncodedTable

STUB = ast.parse((Path(inspect.getfile(schedules)).parents[1] / "_C.pyi").read_text())
STEPS = np.arange(6)


def names_of(body: list[ast.stmt]) -> set[str]:
    """Return what a module or class of the stub defines."""
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    return names - {"__init__"}


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def functions() -> list[tuple[str, list[str]]]:
    """Return the name and the arguments of each function and method of the stub."""
    found = []
    for node in STUB.body:
        owner, body = ("", [node]) if not isinstance(node, ast.ClassDef) else (node.name, node.body)
        for function in body:
            if isinstance(function, ast.FunctionDef) and not function.decorator_list:
                name = f"{owner}.{function.name}" if owner else function.name
                found.append((name, [argument.arg for argument in function.args.args]))
    return found


def arguments_of(name: str) -> list[str]:
    """Return the arguments of a compiled function, from the signature in its docstring."""
    thing: Any = extension()
    for part in name.split("."):
        thing = getattr(thing, part)
    signature = re.match(r"\w+\((.*?)\) ->", thing.__doc__)
    assert signature is not None
    return re.findall(r"(\w+): ", re.sub(r"\[[^\]]*\]", "", signature[1]))


def test_it_names_what_the_module_has() -> None:
    assert names_of(STUB.body) == public(extension())
    for node in STUB.body:
        if isinstance(node, ast.ClassDef):
            assert names_of(node.body) == public(getattr(extension(), node.name)), node.name


@pytest.mark.parametrize(("name", "arguments"), functions())
def test_functions_take_the_arguments_that_it_lists(name: str, arguments: list[str]) -> None:
    assert arguments_of(name) == arguments


def test_it_holds_no_any() -> None:
    assert not any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(STUB))


def encoded(change: str = "", by: int = 0) -> tuple[Any, ...]:
    """Return a schedule as the engine takes it, with so many more fields in one of its rows."""
    (rate,), momentum, decay = schedules.linear(1.0, 0.0, 5).encode()
    (table,) = rate
    (segment,) = table[6]

    def changed(row: tuple[Any, ...], name: str) -> tuple[Any, ...]:
        return row if name != change else (*row, *[0] * by) if by > 0 else row[:by]

    table = changed((*table[:6], [changed(segment, "segment")]), "table")
    return changed(([[table]], momentum, decay), "schedule")


def test_a_schedule_has_the_fields_that_its_types_list() -> None:
    rows = {EncodedSchedule: encoded(), EncodedTable: encoded()[0][0][0]}
    rows[EncodedSegment] = encoded()[0][0][0][6][0]
    for alias, row in rows.items():
        assert len(get_args(alias)) == len(row)
    rates, _, _ = extension().evaluate_schedule(encoded(), STEPS)
    np.testing.assert_allclose(rates, 1.0 - STEPS / 5)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("row", ["segment", "table", "schedule"])
def test_the_module_refuses_another_number_of_fields(row: str, by: int) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        extension().evaluate_schedule(encoded(row, by), STEPS)
