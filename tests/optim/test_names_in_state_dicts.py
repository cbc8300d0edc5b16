"""States are loaded by the names of parameters where both sides have names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from torch import Tensor, nn

import lrfast

NAMES = ("first", "second", "third", "fourth")


def named(names: tuple[str, ...] = NAMES) -> list[tuple[str, nn.Parameter]]:
    """Parameters of one shape, whose values and gradients follow from their names."""
    values = {name: float(1 + NAMES.index(name.rpartition(".")[2])) for name in names}
    return [(name, nn.Parameter(torch.full((3,), values[name]))) for name in names]


def train(optimizer: Any, params: list[tuple[str, nn.Parameter]]) -> None:
    for _, param in params:
        param.grad = param.detach() * 0.7 - 1
    optimizer.step()


def values(params: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    return {name.rpartition(".")[2]: param.detach() for name, param in params}


def groups(params: list[Any]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "lr": 0.03}, {"params": params[2:]}]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (1, 0, 2, 3)])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_reordered_parameters_keep_their_states(
    case: OptimizerCase, order: tuple[int, ...]
) -> None:
    before = named()
    optimizer = case.ours(groups(before), **case.options)
    for _ in range(3):
        train(optimizer, before)
    saved = copy.deepcopy(optimizer.state_dict())
    after = named(tuple(NAMES[place] for place in order))
    for name, param in after:
        param.data.copy_(dict(before)[name])
    resumed = case.ours(groups(after), **case.options)
    resumed.load_state_dict(saved)
    assert [group["param_names"] for group in resumed.param_groups] == [
        [NAMES[place] for place in order[:2]], [NAMES[place] for place in order[2:]]
    ]  # fmt: skip
    for each, params in ((optimizer, before), (resumed, after)):
        train(each, params)
    for name, value in values(before).items():
        assert torch.equal(value, values(after)[name])


def test_positions_count_where_a_side_has_no_names() -> None:
    before = named()
    optimizer = lrfast.AdamW(before, lr=0.1)
    train(optimizer, before)
    saved = copy.deepcopy(optimizer.state_dict())
    for state, params in ((saved, [param for _, param in named()]), (without(saved), named())):
        resumed = lrfast.AdamW(params, lr=0.1)
        resumed.load_state_dict(state)
        param = resumed.param_groups[0]["params"][1]
        assert torch.equal(resumed.state[param]["exp_avg"], saved["state"][1]["exp_avg"])


def without(state: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(state)
    for group in found["param_groups"]:
        del group["param_names"]
    return found


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("is_saved_wrapped", [True, False])
def test_names_within_wrappers_are_those_without(prefix: str, is_saved_wrapped: bool) -> None:
    """DDP and torch.compile put theirs in front."""
    plain, wrapped = NAMES[::-1], tuple(prefix + name for name in NAMES)
    before = named(wrapped if is_saved_wrapped else plain)
    after = named(plain if is_saved_wrapped else wrapped)
    optimizer = lrfast.AdamW(before, lr=0.1)
    train(optimizer, before)
    resumed = lrfast.AdamW(after, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    own = {name.rpartition(".")[2]: resumed.state[param]["exp_avg"] for name, param in after}
    for name, param in before:
        assert torch.equal(own[name.rpartition(".")[2]], optimizer.state[param]["exp_avg"])


def change(names: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["param_groups"][0].update(param_names=names)


ERRORS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "other": (
        change(["first", "second", "third", "fifth"]),
        r"lack \['fourth'\].*have \['fifth'\]",
    ),
    "fewer": (change(["first"]), "the optimizer's 4 names, got 1"),
    "twice": (change(["first", "first", "second", "third"]), r"lack \['fourth'\]"),
    "numbers": (change([1, 2, 3, 4]), "param_names of .* must be a string, got 1"),
    "no list": (change("first"), "param_names of .* must be a list"),
    "more": (change([*NAMES, "first"]), "4 names, got 5"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_names_that_differ_are_refused(name: str) -> None:
    """Nothing has changed then; without names the state dict loads by position."""
    edit, message = ERRORS[name]
    params = named()
    optimizer = lrfast.AdamW(params, lr=0.1)
    train(optimizer, params)
    saved = copy.deepcopy(optimizer.state_dict())
    edit(saved)
    train(optimizer, params)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    for place, state in now["state"].items():
        assert all(torch.equal(value, before["state"][place][key]) for key, value in state.items())
    optimizer.load_state_dict(without(saved))
