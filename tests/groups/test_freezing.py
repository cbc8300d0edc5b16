"""Freezing counts layer groups, keeps what the user froze, and follows what is tied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from module_trees import Block, chain, linear, tied_model, tree
from reference import schedules as reference
from tiny import bits
from tolerance import assert_close
from torch import Tensor, nn

import lrfast
from lrfast.groups import (
    Timetable,
    discriminative,
    freeze,
    freeze_to,
    layer_count,
    layer_groups,
    unfreeze,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "ours": lambda p: lrfast.AdamW(p, lr=0.01, weight_decay=0.1),
    "torch": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
KINDS = pytest.mark.parametrize("kind", OPTIMIZERS)


def give_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 0.5)


def moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters that a step changes."""
    before = {name: bits(p) for name, p in model.named_parameters()}
    optimizer.zero_grad()
    give_gradients(model)
    optimizer.step()
    return [name for name, p in model.named_parameters() if bits(p) != before[name]]


@KINDS
@pytest.mark.parametrize("n", range(-3, 3))
def test_layer_groups_are_counted_not_param_groups(kind: str, n: int) -> None:
    model = nn.Sequential(Block(), Block(), linear())
    built = discriminative(model, 0.1, no_decay=True, split_norms=True)
    optimizer = OPTIMIZERS[kind](built)
    assert (layer_count(optimizer), len(optimizer.param_groups)) == (3, 8)
    freeze_to(optimizer, n)
    trained = range(n % 3, 3)
    assert moved(model, optimizer) == [
        name for name, _ in model.named_parameters() if int(name[0]) in trained
    ]
    assert [g["frozen"] for g in optimizer.param_groups] == [
        g["layer"] not in trained for g in optimizer.param_groups
    ]


@KINDS
def test_a_gradient_from_before_the_freeze_moves_nothing(kind: str) -> None:
    """torch's optimizers know no frozen group: they take whatever gradient they find."""
    model = chain()
    optimizer = OPTIMIZERS[kind](discriminative(model, 0.1))
    give_gradients(model)
    freeze(optimizer)
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, False, False]
    body = [bits(p) for p in model[:-1].parameters()]
    optimizer.step()
    assert [bits(p) for p in model[:-1].parameters()] == body


def test_param_groups_without_a_layer() -> None:
    """Plain ones are layers of their own; one added to numbered ones stands behind them."""
    model = chain()
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], lr=0.1)
    freeze_to(optimizer, 2)
    assert [g["frozen"] for g in optimizer.param_groups] == [True, True, False]
    model = nn.Sequential(Block(), linear())
    optimizer = torch.optim.SGD(discriminative(model, 0.1, no_decay=True))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert layer_count(optimizer) == 3
    freeze_to(optimizer, -1)
    assert [g["frozen"] for g in optimizer.param_groups] == [True] * 4 + [False]
    assert "layer" not in optimizer.param_groups[-1]
    head_first = torch.optim.SGD(discriminative(chain(), 0.1)[::-1])
    head_first.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    freeze_to(head_first, 2)
    assert [g["frozen"] for g in head_first.param_groups] == [False, True, True, False]


@KINDS
def test_what_the_user_froze_stays_frozen(kind: str) -> None:
    model = nn.Sequential(Block(), Block(), linear())
    model[0].fc.weight.requires_grad = False
    model[1].norm.requires_grad_(False)
    optimizer = OPTIMIZERS[kind](discriminative(model, 0.1, no_decay=True))
    model[0].fc.weight.grad = torch.ones(3, 3)  # left over from before it was frozen
    others = [n for n, p in model.named_parameters() if p.requires_grad]
    for first in (2, 0, 1, -1):
        freeze_to(optimizer, first)
        assert moved(model, optimizer) == [n for n in others if int(n[0]) >= first % 3]
    unfreeze(optimizer)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == others


@KINDS
def test_it_stays_frozen_in_copies_and_after_a_resume(kind: str) -> None:
    def build() -> tuple[Any, torch.optim.Optimizer]:
        model = nn.Sequential(Block(), linear())
        model[0].fc.requires_grad_(False)
        return model, OPTIMIZERS[kind](discriminative(model, 0.1))

    model, optimizer = build()
    freeze(optimizer)
    copied, copy = deepcopy((model, optimizer))
    resumed, other = build()
    other.load_state_dict(optimizer.state_dict())
    for model, optimizer in ((copied, copy), (resumed, other)):
        assert [g["frozen"] for g in optimizer.param_groups] == [True, False]
        unfreeze(optimizer)
        assert moved(model, optimizer) == ["0.norm.weight", "0.norm.bias", "1.weight", "1.bias"]


def test_a_tensor_that_cannot_have_gradients_is_no_obstacle() -> None:
    model = chain()
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze(optimizer)
    unfreeze(optimizer)
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad


@KINDS
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_tied_parameter_trains_with_the_last_group_that_holds_it(kind: str, n: int) -> None:
    model = tied_model()
    optimizer = OPTIMIZERS[kind](discriminative(model, [0.1, 0.2, 0.3]))
    freeze_to(optimizer, n)
    assert moved(model, optimizer) == [
        "embed.weight",
        *(["body.weight", "body.bias"] if n < 2 else []),
        "head.bias",
    ]
    assert optimizer.param_groups[0]["lr"] == 0.1  # at the rate of its own group


def test_what_is_tied_is_known_to_groups_that_are_passed_on() -> None:
    model = tied_model()
    found = layer_groups(model)
    assert layer_groups(model, found) is found
    freeze(torch.optim.SGD(discriminative(model, 0.1, groups=found)))
    assert model.embed.weight.requires_grad
    with pytest.raises(ValueError, match="pass modules of the model itself"):
        layer_groups(tied_model(), found)


def test_a_tied_parameter_of_the_body_is_frozen_with_it() -> None:
    model = tree(a=linear(), b=linear(), c=linear(), head=linear())
    model.b.weight = model.a.weight
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze_to(optimizer, 2)
    assert moved(model, optimizer) == ["c.weight", "c.bias", "head.weight", "head.bias"]
    freeze_to(optimizer, 1)
    assert moved(model, optimizer)[:2] == ["a.weight", "b.bias"]


@given(
    frozen=st.sets(st.integers(0, 13)),
    cuts=st.lists(st.integers(-4, 3), min_size=1, max_size=6),
    no_decay=st.sampled_from([None, True]),
)
def test_any_sequence_of_cuts(frozen: set[int], cuts: list[int], no_decay: Any) -> None:
    """What trains is told by the last cut alone, and by what was frozen before the first."""
    model = nn.Sequential(Block(), Block(), Block(), linear())
    free = [p for i, p in enumerate(model.parameters()) if i not in frozen]
    for i, p in enumerate(model.parameters()):
        p.requires_grad = i not in frozen
    optimizer = torch.optim.SGD(discriminative(model, 0.1, no_decay=no_decay))
    for cut in cuts:
        freeze_to(optimizer, cut)
    wanted = {p for layer in model[cuts[-1] % 4 :] for p in layer.parameters()} & set(free)
    assert {p for p in model.parameters() if p.requires_grad} == wanted


LAYERS, PER_EPOCH = 12, 4
STAGES = {0: -1, 1: -3, 2: 6, 3: 3, 4: 0}
TOTAL = len(STAGES) * PER_EPOCH
RATES = [0.02 * 1.2 ** (index - LAYERS + 1) for index in range(LAYERS)]
MOMENTA = (0.95, 0.85)
Trajectory = list[list[Tensor]]


def deep() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Tanh()) for _ in range(LAYERS - 1)]
    return nn.Sequential(*layers, nn.Linear(5, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(TOTAL, 8, 5, dtype=torch.float64, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in inputs]


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def by_hand(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Trajectory:
    """Parameters after each step with torch alone: rates set and gradients dropped by hand."""
    trajectory = []
    for step, (inputs, targets) in enumerate(batches()):
        first = STAGES[step // PER_EPOCH] % LAYERS
        for group, rate in zip(optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate * reference.one_cycle(step, TOTAL)
            if "momentum" in group:
                group["momentum"] = reference.one_cycle_momentum(step, TOTAL, 0.3, *MOMENTA)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for layer in model[:first]:
            for p in layer.parameters():
                p.grad = None
        optimizer.step()
        trajectory.append(values(model))
    return trajectory


def gradually(model: nn.Sequential, optimizer: Any) -> Trajectory:
    """The same by a timetable; nothing of the optimizer is made anew on the way."""
    timetable = Timetable(STAGES)
    groups = list(optimizer.param_groups)
    states: dict[tuple[Tensor, str], Any] = {}
    engine, trajectory = None, []
    for step, (inputs, targets) in enumerate(batches()):
        if step % PER_EPOCH == 0:
            changed = timetable.apply(optimizer, step // PER_EPOCH)
            assert changed
            assert not timetable.apply(optimizer, step // PER_EPOCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        trajectory.append(values(model))
        found = {(p, key): v for p, state in optimizer.state.items() for key, v in state.items()}
        assert all(found[key] is value for key, value in states.items())
        states, engine = found, engine or optimizer._engine
        assert optimizer._engine is engine
        assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    return trajectory


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_gradual_unfreezing_of_12_layers_in_5_stages(name: str) -> None:
    options: dict[str, Any] = {"SGD": {"momentum": 0.9}, "AdamW": {}}[name] | {"weight_decay": 0.1}
    other = deep()
    plain = [{"params": list(layer.parameters())} for layer in other]
    wanted = by_hand(other, getattr(torch.optim, name)(plain, lr=1.0, **options))
    model = deep()
    start = values(model)
    schedule = lrfast.schedules.one_cycle(TOTAL, momentum=MOMENTA if name == "SGD" else None)
    built = discriminative(model, RATES, groups=list(model))
    optimizer = getattr(lrfast, name)(built, **options, schedule=schedule)
    found = gradually(model, optimizer)
    # What went into a value: where it began, and the way it has gone, a rate per step at most.
    scales = [p.abs() + TOTAL * max(RATES) for p in start]
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for p, expected, scale in zip(ours, theirs, scales, strict=True):
            assert_close(p, expected, scale, torch.float64, f"{name}, step {step}", step + 1)
    first_moved = [
        next(step for step in range(TOTAL) if not torch.equal(found[step][i], start[i]))
        for i, _ in enumerate(start)
    ]
    firsts = [STAGES[epoch] % LAYERS for epoch in range(len(STAGES))]
    assert first_moved == [
        PER_EPOCH * next(epoch for epoch, first in enumerate(firsts) if layer >= first)
        for layer, module in enumerate(model)
        for _ in module.parameters()
    ]
    if name == "AdamW":  # counts per parameter, so that bias correction is right for each
        steps = [int(optimizer.state[p]["step"]) for p in model.parameters()]
        assert steps == [TOTAL - moved_at for moved_at in first_moved]


def freezing(n: object, **options: Any) -> Callable[[], object]:
    built = discriminative(nn.Sequential(Block(), Block(), linear()), 0.1, no_decay=True)
    return lambda: freeze_to(torch.optim.SGD(built), n, **options)  # type: ignore[arg-type]


def numbered(layer: object) -> Callable[[], object]:
    params = [nn.Parameter(torch.ones(1))]
    return lambda: unfreeze(torch.optim.SGD([{"params": params, "layer": layer}], lr=0.1))


ERRORS: list[tuple[type[Exception], Callable[[], object], str]] = [
    (ValueError, freezing(3), "n must be from -3 to 2 for 3 groups, got 3$"),
    (ValueError, freezing(-4), "n must be from -3 to 2 for 3 groups, got -4$"),
    (TypeError, freezing(None), "n must be a whole number, the index of a group, got None$"),
    (ValueError, freezing(1, train_norms=True), r"train_norms needs param groups .*split_norms=Tr"),
    (ValueError, numbered(-1), r'param_groups\[0\]\["layer"\] must be a whole .* on, got -1$'),
    (ValueError, numbered(1.0), r'param_groups\[0\]\["layer"\] must be a whole .* on, got 1\.0$'),
    (ValueError, numbered(None), r'param_groups\[0\]\["layer"\] must be a whole .* on, got None$'),
    (
        ValueError,
        lambda: freeze(torch.optim.SGD(discriminative(linear(), 0.1, no_decay=True))),
        "optimizer must have at least 2 groups, got 1",
    ),
    (
        TypeError,
        lambda: layer_count(None),
        "optimizer must be a .*Optimizer, got None",
    ),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("error", "call", "message"), ERRORS)
def test_errors(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_error_changes_nothing() -> None:
    model = nn.Sequential(Block(), linear())
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze(optimizer)
    before = [dict(group) for group in optimizer.param_groups]
    for n, options in ((2, {}), (0, {"train_norms": True})):
        with pytest.raises(ValueError, match=r"n must be|train_norms needs"):
            freeze_to(optimizer, n, **options)  # type: ignore[arg-type]
    assert [dict(group) for group in optimizer.param_groups] == before
    assert not any(p.requires_grad for p in model[0].parameters())


def test_freezing_the_body_of_one_group_is_warned_of() -> None:
    layer = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"freeze_to\(-1\) freezes nothing, .* discriminative"):
        freeze_to(optimizer, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze_to(optimizer, 0)  # says what it does
    assert [group["frozen"] for group in optimizer.param_groups] == [False]
