"""Which layer group trains from which epoch on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from module_trees import chain
from torch import nn

from lrfast.groups import Timetable, discriminative, gradual

ENTRIES = st.dictionaries(st.integers(1, 30), st.integers(-3, 2))


@given(ENTRIES, st.integers(-3, 2))
def test_the_last_entry_up_to_an_epoch_holds(entries: dict[int, int], first: int) -> None:
    timetable = Timetable(entries | {0: first})
    for epoch in range(35):
        wanted = first if not [e for e in entries if e <= epoch] else None
        for entry in sorted(entries):
            wanted = entries[entry] if entry <= epoch else wanted
        assert timetable.at(epoch) == wanted


@given(n=st.integers(1, 8), every=st.integers(1, 4))
def test_gradual_unfreezes_one_group_more_from_the_head(n: int, every: int) -> None:
    timetable = gradual(n, every)
    assert [timetable.at(epoch) for epoch in range(n * every + 3)] == [
        -min(1 + epoch // every, n) for epoch in range(n * every + 3)
    ]


def test_it_is_a_value() -> None:
    timetable = Timetable({4: 0, 0: -1})
    assert dict(timetable) == {0: -1, 4: 0} and len(timetable) == 2 and timetable[4] == 0
    assert timetable == Timetable({0: -1, 4: 0}) != Timetable({0: -1})
    assert hash(timetable) == hash(Timetable({0: -1, 4: 0}))
    assert repr(timetable) == "Timetable({0: -1, 4: 0})"
    for copied in (deepcopy(timetable), pickle.loads(pickle.dumps(timetable))):
        assert copied == timetable and copied.at(3) == -1
    with pytest.raises(TypeError, match="does not support item assignment"):
        timetable[0] = 1  # type: ignore[index]
    given_entries = {0: -1}
    timetable = Timetable(given_entries)
    given_entries[0] = 0
    assert timetable.at(0) == -1


def test_apply_says_what_changes_and_works_after_a_resume() -> None:
    timetable = gradual(3)
    optimizer = torch.optim.SGD(discriminative(chain(), 0.1))
    assert [timetable.apply(optimizer, epoch) for epoch in range(5)] == [True] * 3 + [False] * 2
    late = torch.optim.SGD(discriminative(chain(), 0.1))
    timetable.apply(late, 1)
    assert [group["frozen"] for group in late.param_groups] == [True, False, False]
    assert timetable.apply(late, 0)  # back again
    assert [group["frozen"] for group in late.param_groups] == [True, True, False]


def test_apply_trains_norms_where_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(discriminative(model, 0.1, split_norms=True))
    gradual(2).apply(optimizer, 0, train_norms=True)
    assert model[1].weight.requires_grad and not model[0].weight.requires_grad


def made(first: Any) -> Callable[[], Any]:
    return lambda: Timetable(first)


ERRORS: list[tuple[type[Exception], Callable[[], Any], str]] = [
    (TypeError, made([-1, -2]), "first must be a dict, got a list of int$"),
    (TypeError, made({0: -1, 1.0: 0}), r"first must hold whole numbers, got 1\.0: 0$"),
    (TypeError, made({0: None}), "first must hold whole numbers, got 0: None$"),
    (TypeError, made({False: 0}), "first must hold whole numbers, got False: 0$"),
    (ValueError, made({}), r"first must start with epoch 0, got epochs \[\]$"),
    (ValueError, made({1: -1, 3: 0}), r"first must start with epoch 0, got epochs \[1, 3\]$"),
    (ValueError, made({-1: 0, 0: 0}), r"first must start with epoch 0, got epochs \[-1, 0\]$"),
    (ValueError, lambda: gradual(3).at(-1), "epoch must be a whole number from 0 on, got -1$"),
    (ValueError, lambda: gradual(3).at(1.0), r"epoch must be .*, got 1\.0$"),  # type: ignore[arg-type]
    (ValueError, lambda: gradual(0), "n_groups must be a whole number from 1 on, got 0$"),
    (ValueError, lambda: gradual(3, 0), "every must be a whole number from 1 on, got 0$"),
    (
        ValueError,
        lambda: gradual(4).apply(torch.optim.SGD(discriminative(chain(), 0.1)), 3),
        "n must be from -3 to 2 for 3 groups, got -4$",
    ),
]


@pytest.mark.parametrize(("error", "call", "message"), ERRORS)
def test_errors(error: type[Exception], call: Callable[[], Any], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
