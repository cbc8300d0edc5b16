"""Groups by pattern and by function, and what the report says of them."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from module_trees import Block, chain, linear, parameter, tied_model, tree
from torch import nn

from lrfast.groups import discriminative, freeze_to, layer_groups


def eleven() -> Any:
    """Layers 0 to 10, so that a name begins another."""
    return tree(embed=nn.Embedding(4, 3), layers=nn.ModuleList(linear() for _ in range(11)))


PATTERNS: list[tuple[list[str], list[int]]] = [
    (["*"], [23]),
    (["embed.weight", "*"], [1, 22]),
    (["embed", "layers.?", "layers.10"], [1, 20, 2]),
    (["embed", "layers.1", "*"], [1, 2, 20]),
    (["*.bias", "*"], [11, 12]),
    (["layers.1*", "embed", "layers"], [4, 1, 18]),  # the first pattern that matches
    (["embed", "layers.[0-4].*", "*.1?.*", "layers.[!0-4]"], [1, 10, 2, 10]),
]


@pytest.mark.parametrize(("patterns", "sizes"), PATTERNS, ids=lambda row: " ".join(map(str, row)))
def test_patterns(patterns: list[str], sizes: list[int]) -> None:
    found = layer_groups(eleven(), patterns)
    assert [group.name for group in found] == patterns
    assert [len(group.names) for group in found] == sizes


def test_case_counts_and_dots_are_dots() -> None:
    model = tree(a=linear(), A=linear(), ab=linear())
    assert layer_groups(model, ["a", "*"])[0].names == ("a.weight", "a.bias")
    assert layer_groups(model, ["A", "*"])[0].names == ("A.weight", "A.bias")


@given(st.lists(st.text("abc.*?", min_size=1, max_size=5), min_size=1, max_size=4))
def test_each_parameter_goes_to_the_first_pattern_that_matches(patterns: list[str]) -> None:
    names = ("a", "b", "ab", "c")
    model = tree(**{name: parameter() for name in names}, abc=tree(b=parameter(), c=parameter()))
    everything = [*names, "abc.b", "abc.c"]
    wanted: dict[int, list[str]] = {}
    for name in everything:
        for index, pattern in enumerate([*patterns, "*"]):
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*"):
                wanted.setdefault(index, []).append(name)
                break
    if len(wanted) < len(patterns) + 1:
        with pytest.raises(ValueError, match=r"groups\[\d\] must (hold a param|match the name)"):
            layer_groups(model, [*patterns, "*"])
    else:
        found = layer_groups(model, [*patterns, "*"])
        assert [sorted(group.names) for group in found] == [
            sorted(wanted[i]) for i in range(len(found))
        ]


def test_patterns_stand_beside_modules() -> None:
    model = tree(a=linear(), b=Block(), c=linear())
    found = layer_groups(model, [model.a, "b.norm", [model.b.fc.weight], "*"])
    assert [group.name for group in found] == ["a", "b.norm", "group 2", "*"]
    assert found[3].names == ("b.fc.bias", "c.weight", "c.bias")


def test_what_several_patterns_match_is_reported_but_for_the_rest() -> None:
    found = layer_groups(chain(), ["*.weight", "0", "*"])
    assert found.duplicates == ["0.weight"]
    assert [group.names for group in found][1:] == [("0.bias",), ("1.bias", "2.bias")]


def test_a_tied_parameter_goes_by_all_its_names() -> None:
    found = layer_groups(tied_model(), ["head", "*"])
    assert found[0].names == ("embed.weight", "head.bias")
    found = layer_groups(tied_model(), ["embed", "body", "head"])
    assert [len(group.names) for group in found] == [1, 2, 1]
    assert found.duplicates == ["embed.weight"]
    assert list(found.tied_until.values()) == [2]


def test_a_function_numbers_the_groups() -> None:
    found = layer_groups(eleven(), lambda name: 0 if "embed" in name else 1 + ("10" in name))
    assert [group.name for group in found] == ["group 0", "group 1", "group 2"]
    assert [len(group.names) for group in found] == [1, 20, 2]
    assert found[2].names == ("layers.10.weight", "layers.10.bias")


def test_a_function_sees_every_name_of_a_tied_parameter() -> None:
    def number(name: str) -> int | None:
        return {"embed.weight": None, "head.weight": 1, "head.bias": 1}.get(name, 0)

    found = layer_groups(tied_model(), number)
    assert found[1].names == ("embed.weight", "head.bias")
    numbers = {"embed": 0, "body": 1, "head": 2}
    found = layer_groups(tied_model(), lambda name: numbers[name.partition(".")[0]])
    assert found.duplicates == ["embed.weight"]
    assert list(found.tied_until.values()) == [2]


def test_the_report_follows_the_model() -> None:
    model = nn.Sequential(linear(), nn.BatchNorm1d(3), linear(), nn.LayerNorm(3), linear())
    found = layer_groups(model)
    assert (found.frozen, found.frozen_norms, found.unassigned) == ([], [], [])
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze_to(optimizer, 1)
    assert found.frozen == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert found.frozen_norms == ["1"]
    freeze_to(optimizer, 2)
    assert found.frozen_norms == ["1", "3"]
    freeze_to(optimizer, 0)
    model[1].requires_grad_(False)  # its group still trains
    assert found.frozen == ["1.weight", "1.bias"]
    assert found.frozen_norms == []
    model[4] = linear()  # after the cut
    assert found.unassigned == ["4.weight", "4.bias"]
    assert found.describe().splitlines()[4:] == [
        *("in no group: 4.weight", "in no group: 4.bias"),
        *("frozen: 1.weight", "frozen: 1.bias"),
    ]
    model[0].requires_grad_(False)
    assert found.describe().splitlines()[-1] == "normalisation in a frozen group: 1"


def test_a_norm_with_a_part_in_a_group_that_trains_is_not_in_a_frozen_one() -> None:
    model = nn.Sequential(linear(), nn.LayerNorm(3), linear())
    found = layer_groups(model, [[model[0], model[1].weight], [model[1].bias, model[2]]])
    model[0].requires_grad_(False)
    model[1].weight.requires_grad = False
    assert found.frozen_norms == []
    model[1].bias.requires_grad = False
    assert found.frozen_norms == []  # its group trains still
    model[2].requires_grad_(False)
    assert found.frozen_norms == ["1"]


def grouped(groups: Any, model: Callable[[], Any] = chain) -> Callable[[], object]:
    return lambda: layer_groups(model(), groups)


ERRORS: list[tuple[type[Exception], Callable[[], object], str]] = [
    (TypeError, grouped("0"), r"groups must be a list, a function or None, got '"),
    (ValueError, grouped(["[01]"]), r"groups must hold every parameter, add 2\.weight, 2\.bias to"),
    (ValueError, grouped(["3", "*"]), r"groups\[0\] must match the name .* a module, got '3'$"),
    (ValueError, grouped(["*.w", "*"]), r"groups\[0\] must match the name of a parameter or the p"),
    (ValueError, grouped(["*", "0"]), r"groups\[1\] must hold a parameter that no earlier group"),
    (ValueError, grouped(["[012]", "*"]), r"groups\[1\] must hold a parameter that no earlier"),
    (ValueError, grouped(["0", "0.weight", "*"]), r"groups\[1\] must hold a parameter that no ear"),
    (ValueError, grouped([]), r"groups must hold every parameter, add 0\.weight, 0\.bias, 1\.w"),
    (
        ValueError,
        grouped(lambda name: 0 if name[0] == "1" else None),
        r"groups must give every parameter a number, got None for 0\.weight, 0\.bias, 2\.weight, 2",
    ),
    (ValueError, grouped(lambda name: 2 * int(name[0])), "use every number .* no parameter for 1$"),
    (ValueError, grouped(lambda name: 1), "groups must use every number from 0 on, .* for 0$"),
    (ValueError, grouped(lambda name: 10**12), "groups must use every number from 0 on, .* for 0$"),
    (
        ValueError,
        grouped(lambda name: -1),
        r"whole number from 0 on, or None, got -1 for 0\.weight",
    ),
    (
        ValueError,
        grouped(lambda name: True),
        "groups must return a whole number .*, got True for 0",
    ),
    (ValueError, grouped(lambda name: name), r"groups must return .*got '0\.weight' for 0\.weight"),
]


@pytest.mark.parametrize(("error", "call", "message"), ERRORS)
def test_errors(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
