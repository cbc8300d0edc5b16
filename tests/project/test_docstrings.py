"""Every public name is documented as the house does it: arguments, returns, errors, example."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from check_site import INTERNAL, public_names  # noqa: E402

# Nobody makes these by hand: who does has the example, and their docstrings say what they hold.
MADE_BY = {
    "lrfast.BenchResult": "lrfast.bench",
    "lrfast.CapturedStep": "lrfast.capture",
    "lrfast.CurveStatus": "lrfast.LossCurve",
    "lrfast.RecaptureNeeded": "lrfast.capture",
    "lrfast.RetestEntry": "lrfast.Retest",
    "lrfast.Stage": "lrfast.FineTuner",
    "lrfast.Telemetry": "lrfast.optim.FusedOptimizer.telemetry",
}
# Bases, whose subclasses have constructors of their own.
ABSTRACT = {
    "lrfast.CapturedStep",
    "lrfast.loss_schedules.LossSchedule",
    "lrfast.optim.FusedOptimizer",
}


def shortest_names() -> dict[str, Any]:
    """Each public class and function once, by its shortest name."""
    names: dict[int, tuple[str, Any]] = {}
    for name, value in public_names().items():
        is_whole = inspect.isclass(value) or inspect.isfunction(value)
        if is_whole and name not in INTERNAL:
            known = names.setdefault(id(value), (name, value))
            names[id(value)] = min(known, (name, value), key=lambda pair: len(pair[0]))
    return dict(names.values())


NAMES = shortest_names()


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class defines in public itself; not what takes over its base's description."""
    for name, member in vars(cls).items():
        inherits = any(name in vars(base) for base in cls.__mro__[1:] if base is not object)
        if not name.startswith("_") and not (inherits and callable(member)):
            yield name, member


def described(section: str, doc: str) -> bool:
    return re.search(rf"^ *{section}:$", doc, re.MULTILINE) is not None


def faults_of(function: Callable[..., Any], doc: str) -> list[str]:
    """What a function's docstring does not say and should."""
    signature = inspect.signature(function)
    faults = [
        f"argument {name}"
        for name in signature.parameters
        if name not in ("self", "cls") and not re.search(rf"^ +\**{name}: ", doc, re.MULTILINE)
    ]
    returns = signature.return_annotation
    if returns not in ("None", None, inspect.Signature.empty) and not (
        doc.startswith("Return ") or described("Returns", doc) or described("Yields", doc)
    ):
        faults.append("what it returns")
    raises = re.search(r"^ +raise [A-Z]", inspect.getsource(function), re.MULTILINE)
    if raises and not described("Raises", doc):
        faults.append("what it raises")
    return faults


def summary_faults(doc: str) -> list[str]:
    first = doc.split("\n\n")[0]
    return [] if first.rstrip().endswith((".", ":", "::")) else ["a sentence as its first line"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_names_are_documented(name: str) -> None:
    value = NAMES[name]
    doc = inspect.getdoc(value) or ""
    assert summary_faults(doc) == []
    if inspect.isfunction(value):
        assert faults_of(value, doc) == []
    elif name not in ABSTRACT and not issubclass(value, Exception):
        own = "__init__" in vars(value) or hasattr(value, "__dataclass_fields__")
        arguments = inspect.signature(value).parameters if own else {}
        assert [n for n in arguments if not re.search(rf"^ +\**{n}: ", doc, re.MULTILINE)] == []
    is_maker = name.startswith("lrfast.schedules.") and inspect.isfunction(value)
    if (name.count(".") == 1 or is_maker) and name not in MADE_BY:
        assert described("Example", doc)


@pytest.mark.parametrize("name", sorted(n for n, value in NAMES.items() if inspect.isclass(value)))
def test_public_methods_are_documented(name: str) -> None:
    for method, member in methods(NAMES[name]):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not inspect.isfunction(function):
            continue
        doc = inspect.getdoc(function) or ""
        faults = summary_faults(doc)
        if not isinstance(member, property):
            faults += faults_of(inspect.unwrap(function), doc)
        assert faults == [], method


# Above this number of arguments a docstring has three blocks of them.
MANY = 20
BLOCKS = ("Args", "Common args", "Advanced args")


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """Arguments of a function or of a class's constructor; none of an exception's."""
    if isinstance(NAMES[name], type) and issubclass(NAMES[name], Exception):
        return {}
    return dict(inspect.signature(NAMES[name]).parameters)


@pytest.mark.parametrize("name", [name for name in NAMES if len(arguments_of(name)) > MANY])
def test_many_arguments_stand_in_three_blocks(name: str) -> None:
    doc = inspect.getdoc(NAMES[name]) or ""
    sections = dict(re.findall(r"^(\w[\w ]*):\n(.*?)(?=\n\n\w|\Z)", doc, re.MULTILINE | re.DOTALL))
    blocks = [re.findall(r"^    (\w+): ", sections.get(each, ""), re.MULTILINE) for each in BLOCKS]
    parameters = arguments_of(name)
    assert sorted(argument for block in blocks for argument in block) == sorted(parameters)
    needed = [each for each, kind in parameters.items() if kind.default is inspect.Parameter.empty]
    assert set(needed) <= set(blocks[0])
    assert all(blocks) and len(blocks[0]) < 7 and len(blocks[1]) < 12


def test_those_who_make_what_nobody_makes_by_hand_have_examples() -> None:
    for made, maker in MADE_BY.items():
        assert made in NAMES
        owner, _, method = maker.rpartition(".")
        found = NAMES.get(maker) or getattr(NAMES[owner], method)
        assert described("Example", inspect.getdoc(found) or ""), maker


def test_a_docstring_without_its_parts_is_found() -> None:
    def silent(lrs: list[float], *, beta: float) -> float:
        raise ValueError

    assert faults_of(silent, "Smooth.\n\nArgs:\n    lrs: Rates.") == [
        *("argument beta", "what it returns", "what it raises")
    ]
    assert summary_faults("smooth") == ["a sentence as its first line"]
