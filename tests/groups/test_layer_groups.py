"""Layer groups, the spreading of rates over them, and freezing, on small module trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from module_trees import Block, chain, linear, parameter, tied_model, tree
from torch import nn

from lrfast import groups
from lrfast.groups import discriminative, freeze, freeze_to, layer_groups, spread, unfreeze


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class NormedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class PreNorm(Block):
    """A transformer block that normalises first, as ViT code calls it."""


Build = Callable[[], nn.Module]

TREES: list[tuple[str, Build, list[str]]] = [
    ("flat", lambda: nn.Sequential(linear(), nn.ReLU(), linear()), ["0", "2"]),
    ("single module", linear, ["Linear"]),
    ("body and head", lambda: tree(a=Block(), b=linear()), ["a", "b"]),
    ("wrapped", lambda: tree(m=tree(a=Block(), b=linear())), ["m.a", "m.b"]),
    ("wrapped list", lambda: tree(m=nn.ModuleList([Block(), Block()])), ["m.0", "m.1"]),
    ("beside dropout", lambda: tree(a=nn.Dropout(), m=chain()), ["m.0", "m.1", "m.2"]),
    ("nested", lambda: tree(a=nn.Sequential(nn.ModuleList([Block()]), linear())), ["a.0.0", "a.1"]),
    ("module dict", lambda: tree(a=nn.ModuleDict({"x": linear()}), b=linear()), ["a.x", "b"]),
    ("norm first", lambda: nn.Sequential(nn.LayerNorm(3), chain()), ["0", "1.0", "1.1", "1.2"]),
    ("norm later", lambda: tree(a=linear(), b=nn.Sequential(RMSNorm(), linear())), ["a", "b.1"]),
    ("normed head is no norm", lambda: nn.Sequential(linear(), NormedLinear()), ["0", "1"]),
    ("block named norm", lambda: nn.Sequential(linear(), PreNorm()), ["0", "1"]),
    ("block that ends in a norm", lambda: nn.Sequential(linear(), Block()), ["0", "1"]),
    ("own parameters stop the descent", lambda: tree(p=parameter(), m=Block()), ["m"]),
    ("only own parameters", lambda: tree(p=parameter()), ["Module"]),
    ("parameter list", lambda: tree(p=nn.ParameterList([parameter()]), m=linear()), ["p", "m"]),
    ("shared module", lambda: nn.Sequential(*[linear()] * 2, linear()), ["0", "2"]),
]


@pytest.mark.parametrize(("build", "names"), [pytest.param(*row, id=i) for i, *row in TREES])
def test_groups_of_trees(build: Build, names: list[str]) -> None:
    model = build()
    found = layer_groups(model)
    assert [group.name for group in found] == names
    held = [p for group in found for p in group.parameters]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    by_name = dict(model.named_parameters())
    for group in found:
        assert len(group.names) == len(group.parameters)
        assert all(by_name[n] is p for n, p in zip(group.names, group.parameters, strict=True))


NORMS: list[Callable[[int], nn.Module]] = [
    *(nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm),
    *(lambda n: nn.GroupNorm(1, n), lambda n: nn.InstanceNorm2d(n, affine=True)),
    *(type("MyLayer", (nn.LayerNorm,), {}), lambda n: RMSNorm()),
    lambda n: type("LayerNorm2d", (NormedLinear,), {})(),
]


@pytest.mark.parametrize("norm", NORMS)
def test_norm_joins_the_group_before(norm: Callable[[int], nn.Module]) -> None:
    assert len(layer_groups(nn.Sequential(linear(), norm(3), linear()))) == 2


def test_own_parameters_come_first_in_the_first_group() -> None:
    model = tree(patches=linear(), blocks=nn.ModuleList([Block()]), cls_token=parameter())
    assert layer_groups(model)[0].names == ("cls_token", "patches.weight", "patches.bias")


def test_own_parameters_of_a_container_join_its_first_group() -> None:
    class Layers(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(linear(), linear())
            self.pos = parameter()

    found = layer_groups(tree(stem=linear(), layers=Layers()))
    assert [group.name for group in found] == ["stem", "layers.0", "layers.1"]
    assert found[1].names == ("layers.pos", "layers.0.weight", "layers.0.bias")


def test_tied_parameter_counts_once_under_all_its_names() -> None:
    found = layer_groups(tied_model())
    assert [group.names for group in found] == [
        ("embed.weight",),
        ("body.weight", "body.bias"),
        ("head.bias",),
    ]
    assert found.tied == [("embed.weight", "head.weight")]
    assert found.duplicates == ["embed.weight"]


def test_group_that_is_tied_away_vanishes() -> None:
    embed = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embed.weight
    assert [g.name for g in layer_groups(tree(embed=embed, body=linear(), head=head))] == [
        "embed",
        "body",
    ]


def test_groups_are_a_sequence() -> None:
    found = layer_groups(chain())
    assert len(found) == 3
    assert found[-1] is list(found)[2]
    assert [group.name for group in found[1:]] == ["1", "2"]
    assert found[0] in found


def test_describe_lists_everything() -> None:
    model = tied_model()
    model.body.requires_grad_(False)
    assert layer_groups(model).describe().splitlines() == [
        "group  name   tensors  parameters  trainable",
        "    0  embed        1          15         15",
        "    1  body         2          12          0",
        "    2  head         1           5          5",
        "tied: embed.weight = head.weight",
        "in several groups: embed.weight",
        "frozen: body.weight",
        "frozen: body.bias",
    ]
    assert str(layer_groups(model)) == repr(layer_groups(model)) == layer_groups(model).describe()


def test_explicit_groups() -> None:
    model = tree(a=linear(), b=Block(), c=linear(), d=parameter())
    found = layer_groups(model, [[model.a, model.d], model.b, model.c])
    assert [group.name for group in found] == ["group 0", "b", "c"]
    assert found[0].names == ("a.weight", "a.bias", "d")
    assert found.duplicates == []


def test_explicit_groups_may_be_generators_and_layer_groups() -> None:
    model = chain()
    found = layer_groups(model, groups=layer_groups(model))
    assert [g.name for g in found] == ["0", "1", "2"]
    found = layer_groups(model, (part.parameters() for part in (model[:2], model[2])))
    assert [len(g.parameters) for g in found] == [4, 2]


def test_explicit_duplicates_stay_in_the_first_group_and_are_reported() -> None:
    model = chain()
    found = layer_groups(model, [[model[0], model[1].weight, model[2].bias], model[1], model[2]])
    assert [len(group.names) for group in found] == [4, 1, 1]
    assert found.duplicates == ["1.weight", "2.bias"]
    assert found.tied == []


def test_explicit_tied_parameter_belongs_to_the_first_group_given() -> None:
    model = tied_model()
    found = layer_groups(model, [model.head, model.body])
    assert found[0].names == ("embed.weight", "head.bias")


@pytest.mark.parametrize(
    ("lr", "n", "expected"),
    [
        (0.1, 3, [0.1, 0.1, 0.1]),
        (1, 2, [1.0, 1.0]),
        (0.0, 2, [0.0, 0.0]),
        (slice(1e-3), 3, [1e-4, 1e-4, 1e-3]),
        (slice(None, 1e-3), 2, [1e-4, 1e-3]),
        (slice(1e-6, 1e-4), 3, [1e-6, 1e-5, 1e-4]),  # published: fastai's documentation
        (slice(2, 32), 5, [2, 4, 8, 16, 32]),
        (slice(1e-2, 1e-4), 3, [1e-2, 1e-3, 1e-4]),
        ([1e-3, 0.0], 2, [1e-3, 0.0]),
        ((1e-3,), 1, [1e-3]),
    ],
)
def test_spread(lr: groups.Rates, n: int, expected: list[float]) -> None:
    found = spread(lr, n)
    assert found == pytest.approx(expected, rel=1e-14)
    assert all(type(rate) is float for rate in found)


def test_spread_hits_both_ends_exactly_with_equal_ratios() -> None:
    assert 1e-4 * (0.03 / 1e-4) != 0.03  # so the formula alone misses this end
    for n in range(2, 30):
        for first, last in [(1e-6, 1e-4), (1e-4, 0.03), (1e-3, 1e-3), (0.7, 0.3)]:
            found = spread(slice(first, last), n)
            assert (found[0], found[-1], len(found)) == (first, last, n)
            ratios = [b / a for a, b in pairwise(found)]
            assert ratios == pytest.approx([(last / first) ** (1 / (n - 1))] * (n - 1), rel=1e-12)


def test_discriminative() -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    built = discriminative(model, slice(1e-4, 1e-2), weight_decay=0.05)
    assert [list(group) for group in built] == [
        ["params", "lr", "name", "layer", "weight_decay"]
    ] * 2
    assert [(g["lr"], g["name"], g["weight_decay"]) for g in built] == [
        (1e-4, "0", 0.05),
        (1e-2, "2", 0.05),
    ]
    optimizer = torch.optim.AdamW(built)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-4, 1e-2]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


def test_discriminative_without_weight_decay_and_with_explicit_groups() -> None:
    model = chain()
    built = discriminative(model, [1, 2], groups=[[model[0], model[1]], model[2]])
    assert [sorted(group) for group in built] == [["layer", "lr", "name", "params"]] * 2
    assert discriminative(model, 0.1, weight_decay=0)[0]["weight_decay"] == 0
    assert [len(group["params"]) for group in built] == [4, 2]


def test_discriminative_takes_tied_and_frozen_parameters() -> None:
    model = tied_model()
    model.embed.requires_grad_(False)
    built = discriminative(model, 0.1)
    torch.optim.SGD(built)  # raises if a parameter stands in two groups
    assert sum(len(group["params"]) for group in built) == 4


def trained(n: int = 3) -> tuple[nn.Sequential, torch.optim.Adam]:
    """A chain of n layers after one step, so that gradients and states exist."""
    model = nn.Sequential(*(linear() for _ in range(n)))
    optimizer = torch.optim.Adam(discriminative(model, 0.1))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(("n", "frozen"), [(0, 0), (1, 1), (2, 2), (-1, 2), (-2, 1), (-3, 0)])
def test_freeze_to(n: int, frozen: int) -> None:
    model, optimizer = trained()
    freeze_to(optimizer, n)
    for index, (group, layer) in enumerate(zip(optimizer.param_groups, model, strict=True)):
        assert group["frozen"] is (index < frozen)
        for p in layer.parameters():
            assert p.requires_grad is (index >= frozen)
            assert (p.grad is None) is (index < frozen)


def test_freezing_keeps_groups_and_states() -> None:
    _, optimizer = trained()
    lists = [group["params"] for group in optimizer.param_groups]
    state = {p: dict(values) for p, values in optimizer.state.items()}
    freeze(optimizer)
    unfreeze(optimizer)
    assert all(a["params"] is b for a, b in zip(optimizer.param_groups, lists, strict=True))
    assert all(optimizer.state[p][key] is v for p in state for key, v in state[p].items())
    assert len(state) == 6


def test_frozen_parameters_do_not_move_and_move_again_when_unfrozen() -> None:
    model, optimizer = trained()

    def moved() -> list[bool]:
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        return [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]

    freeze(optimizer)
    assert moved() == [False] * 4 + [True] * 2
    freeze_to(optimizer, 1)
    assert moved() == [False] * 2 + [True] * 4
    unfreeze(optimizer)
    assert moved() == [True] * 6


def test_frozen_survives_the_state_dict() -> None:
    _, optimizer = trained()
    freeze(optimizer)
    _, other = trained()
    other.load_state_dict(optimizer.state_dict())
    assert [group["frozen"] for group in other.param_groups] == [True, True, False]


def explicit(pick: Callable[[nn.Sequential], Iterable[Any]]) -> Callable[[], object]:
    def call() -> object:
        model = chain()
        return layer_groups(model, pick(model))

    return call


def stepped(n: object, count: int = 3) -> Callable[[], object]:
    return lambda: freeze_to(trained(count)[1], n)


def spreading(lr: object, n: object = 3) -> Callable[[], object]:
    return lambda: spread(lr, n)


ERRORS: list[tuple[type[Exception], Callable[[], object], str]] = [
    (TypeError, lambda: layer_groups([1]), r"model must be a torch\.nn\.Module, got a list of int"),
    (ValueError, lambda: layer_groups(nn.ReLU()), r"model must have parameters, got ReLU without"),
    (TypeError, explicit(lambda m: 3), "groups must be a list, a function or None, got 3"),
    (TypeError, explicit(lambda m: m[0]), r"groups must be a list with one .*Linear"),
    (TypeError, explicit(lambda m: [m, 3]), r"groups\[1\] must be a module or a .*, got int in it"),
    (TypeError, explicit(lambda m: [[m, "a"]]), r"groups\[0\] .*got str in it; names go into"),
    (ValueError, explicit(lambda m: [m[1:]]), r"every parameter, add 0\.weight, 0\.bias to one$"),
    (ValueError, explicit(lambda m: []), r"groups must hold every parameter, add 0\.weight, 0\.b"),
    (ValueError, explicit(lambda m: [m, linear()]), r"groups\[1\] must hold parameters of the mod"),
    (ValueError, explicit(lambda m: [m, m[1]]), r"groups\[1\] must hold a parameter .*, got none"),
    (ValueError, explicit(lambda m: [m, []]), r"groups\[1\] must hold a .*leave this group out"),
    (ValueError, spreading(-0.1), r"lr must be finite and not negative, got -0\.1; try 1e-3"),
    (ValueError, spreading(math.nan), r"lr must be finite and not negative, got nan"),
    (ValueError, spreading(math.inf), r"lr must be finite and not negative, got inf"),
    (TypeError, spreading("0.1"), r"lr must be a number, .*, got '0\.1'; pass 0\.1"),
    (TypeError, spreading(None), "lr must be a number, .*, got None"),
    (TypeError, spreading(True), "lr must be a number, .*, got True"),
    (
        TypeError,
        spreading(torch.tensor(0.1)),
        "lr must be a .*, got a tensor .* its .item",
    ),
    (ValueError, spreading([0.1, 0.2]), r"lr must have one rate per group, got 2 for 3 groups"),
    (ValueError, spreading([]), r"lr must have one rate per group, got 0 for 3 groups"),
    (ValueError, spreading([0.1, -1, 0.1]), r"lr\[1\] must be finite and not negative, got -1"),
    (TypeError, spreading([0.1, "a", 0.1]), r"lr\[1\] must be a number, got 'a'"),
    (ValueError, spreading(slice(None)), r"lr must be slice\(first, last\) or slice\(last\) if a "),
    (ValueError, spreading(slice(1e-3, None)), r"lr must be slice\(first, .*got slice\(0\.001, N"),
    (ValueError, spreading(slice(1e-3, 1e-2, 2)), r"lr must be slice\(first, .*got slice\(.*, 2\)"),
    (ValueError, spreading(slice(0, 1e-2)), r"lr must not be 0 at an end of a slice, got slice\(0"),
    (ValueError, spreading(slice(1e-2, 0)), r"lr must not be 0 at an end of a slice, got slice\(0"),
    (ValueError, spreading(slice(0)), r"lr must not be 0 at an end .*; pass a list for that"),
    (ValueError, spreading(slice(-1e-4, 1e-2)), r"lr\.start must be finite and not negative, got "),
    (ValueError, spreading(slice(math.nan)), r"lr\.stop must be finite and not negative, got nan"),
    (TypeError, spreading(slice("a", 1e-2)), r"lr\.start must be a number, got 'a'"),
    (ValueError, spreading(slice(1e-4, 1), 1), r"lr must be a number if there is one .*; pass 1$"),
    (ValueError, spreading(slice(1e-2), 1), r"lr must be a number if there is .*; pass 0\.01"),
    (ValueError, spreading(0.1, 0), r"n must be a whole number of groups from 1 on, got 0"),
    (ValueError, spreading(0.1, 2.0), r"n must be a whole number of groups from 1 on, got 2\.0"),
    (ValueError, lambda: discriminative(chain(), [1, 2]), r"lr must have one .* 2 for 3 groups"),
    (ValueError, lambda: discriminative(chain(), 1, -0.1), r"weight_decay must be .*, got -0\.1"),
    (
        TypeError,
        lambda: discriminative(chain(), 1, "1"),
        "decay must be a number or None, got '1'",
    ),
    (ValueError, stepped(3), r"n must be from -3 to 2 for 3 groups, got 3"),
    (ValueError, stepped(-4), r"n must be from -3 to 2 for 3 groups, got -4"),
    (TypeError, stepped(1.0), r"n must be a whole number, the index of a group, got 1\.0"),
    (TypeError, stepped(True), r"n must be a whole number, the index of a group, got True"),
    (ValueError, lambda: freeze(trained(1)[1]), r"optimizer must have at least 2 groups, got 1; s"),
    (TypeError, lambda: freeze([]), r"optimizer must be a torch\.optim\.Optimizer, got a list"),
    (
        TypeError,
        lambda: unfreeze(chain()),
        "optimizer must be a .*, got a Sequential",
    ),
]


@pytest.mark.parametrize(("error", "call", "message"), ERRORS)
def test_errors(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
