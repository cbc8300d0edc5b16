"""Rates by name and by decay, weight decay or none, and the param groups that come of it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from module_trees import Block, chain, linear, parameter, tied_model, tree
from torch import nn

import lrfast
from lrfast.groups import discriminative, layer_groups, spread


def names_of(model: nn.Module, group: dict[str, Any]) -> list[str]:
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for p in group["params"]]


def transformer() -> Any:
    return tree(embed=nn.Embedding(5, 3), layers=nn.ModuleList([Block(), Block()]), head=linear())


BY_NAME: list[tuple[dict[str, float], list[float]]] = [
    ({"embed": 1, "layers.0": 2, "layers.1": 3, "head": 4}, [1, 2, 3, 4]),
    ({"*": 1}, [1, 1, 1, 1]),
    ({"*": 1, "head": 4}, [1, 1, 1, 4]),  # a group's name goes before patterns
    ({"layers.*": 2, "*": 1}, [1, 2, 2, 1]),  # an earlier pattern before later ones
    ({"layers": 0.0, "head": 3, "embed.weight": 5}, [5, 0, 0, 3]),
]


@pytest.mark.parametrize(("lr", "wanted"), BY_NAME)
def test_rates_by_name(lr: dict[str, float], wanted: list[float]) -> None:
    model = transformer()
    assert spread(lr, layer_groups(model)) == wanted
    assert [group["lr"] for group in discriminative(model, lr)] == wanted


def test_spread_takes_groups_where_it_takes_their_number() -> None:
    groups = layer_groups(transformer())
    for lr in (0.1, slice(1e-4, 1e-2), slice(1e-2), [1.0, 2.0, 3.0, 4.0]):
        assert spread(lr, groups) == spread(lr, 4)


def test_decay_is_timms_formula() -> None:
    """Scales that timm 1.0.31 gives to a ViT of four layer groups."""
    model = transformer()
    assert [g["lr"] for g in discriminative(model, 1.0, decay=0.5)] == [0.125, 0.25, 0.5, 1.0]
    rates = [g["lr"] for g in discriminative(model, 2.0, decay=0.5, min_scale=0.2)]
    assert rates == [0.4, 0.5, 1.0, 2.0]


@given(
    lr=st.floats(1e-8, 10),
    decay=st.floats(1e-3, 1),
    min_scale=st.floats(0, 1),
    layers=st.integers(1, 6),
)
def test_decay(lr: float, decay: float, min_scale: float, layers: int) -> None:
    model = nn.Sequential(*(linear() for _ in range(layers)))
    rates = [g["lr"] for g in discriminative(model, lr, decay=decay, min_scale=min_scale)]
    assert rates[-1] == lr
    for index, rate in enumerate(rates):
        assert rate == pytest.approx(lr * max(min_scale, decay ** (layers - 1 - index)), rel=1e-14)


def test_ulmfit_divides_by_2_6() -> None:
    rates = [g["lr"] for g in discriminative(chain(), 0.1, decay=1 / 2.6)]
    assert rates == pytest.approx([0.1 / 2.6**2, 0.1 / 2.6, 0.1], rel=1e-14)


class Odd(nn.Module):
    """A norm with a weight of two dimensions, a table of biases, a scale, an in_proj_bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()
        self.norm = nn.LayerNorm((2, 3))
        self.relative_position_bias_table = nn.Parameter(torch.ones(2, 3))
        self.gamma = parameter()
        self.temperature = nn.Parameter(torch.ones(()))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.unbiased = nn.Parameter(torch.ones(2, 3))


def test_no_decay_for_norms_and_biases() -> None:
    model = nn.Sequential(Odd(), linear())
    decayed, spared, head, head_bias = discriminative(model, 0.1, 0.05, no_decay=True)
    assert names_of(model, decayed) == [
        "0.unbiased",
        "0.fc.weight",
        "0.attention.in_proj_weight",
        "0.attention.out_proj.weight",
    ]
    assert set(names_of(model, spared)) == {
        *("0.relative_position_bias_table", "0.gamma", "0.temperature", "0.fc.bias"),
        *("0.norm.weight", "0.norm.bias", "0.attention.in_proj_bias", "0.attention.bias_k"),
        *("0.attention.bias_v", "0.attention.out_proj.bias"),
    }
    assert [g["weight_decay"] for g in (decayed, spared, head, head_bias)] == [0.05, 0, 0.05, 0]
    assert [g["name"] for g in (decayed, spared)] == ["0", "0, no decay"]
    assert [g["layer"] for g in (decayed, spared, head, head_bias)] == [0, 0, 1, 1]


def test_no_decay_by_pattern_and_with_the_optimizers_own_decay() -> None:
    model = transformer()
    built = discriminative(model, 0.1, no_decay=["embed", "*.norm.*"])
    assert [g["name"] for g in built] == [
        "embed, no decay",
        *("layers.0", "layers.0, no decay", "layers.1", "layers.1, no decay"),
        "head",
    ]
    optimizer = torch.optim.AdamW(built, weight_decay=0.3)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 0.3, 0, 0.3, 0, 0.3]


def test_no_decay_goes_by_all_names_of_a_tied_parameter() -> None:
    built = discriminative(tied_model(), 0.1, 0.2, no_decay=["head"])
    assert [g["weight_decay"] for g in built] == [0, 0.2, 0]


def test_what_has_no_decay_does_not_decay() -> None:
    model = transformer()
    optimizer = lrfast.SGD(discriminative(model, 0.1, weight_decay=0.5, no_decay=True))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        shrinks = p.dim() > 1
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if shrinks else 1.0))


def test_all_kinds_of_a_layer_group() -> None:
    model = tied_model()
    model.body = Block()
    model.body.norm.bias.requires_grad = False
    built = discriminative(model, 0.1, 0.2, no_decay=["*.bias"], split_norms=True)
    assert [(g["name"], names_of(model, g)) for g in built] == [
        ("embed, tied to 2", ["embed.weight"]),
        ("body", ["body.fc.weight"]),
        ("body, no decay", ["body.fc.bias"]),
        ("body, norms", ["body.norm.weight"]),
        ("body, norms, no decay", ["body.norm.bias"]),
        ("head, no decay", ["head.bias"]),
    ]
    assert [g["layer"] for g in built] == [0, 1, 1, 1, 1, 2]
    assert [g["norms"] for g in built] == [False, False, False, True, True, False]
    assert [g.get("tied_until") for g in built] == [2, None, None, None, None, None]
    assert [g.get("kept_frozen") for g in built] == [None, None, None, None, [0], None]


BUILDS: list[Callable[[], Any]] = [chain, transformer, tied_model, lambda: nn.Sequential(Odd())]


@given(
    build=st.sampled_from(BUILDS),
    no_decay=st.sampled_from([None, True, ["*bias"]]),
    split_norms=st.booleans(),
    frozen=st.sets(st.integers(0, 12)),
)
def test_every_parameter_once(
    build: Callable[[], Any], no_decay: Any, split_norms: bool, frozen: set[int]
) -> None:
    model = build()
    for index, p in enumerate(model.parameters()):
        p.requires_grad = index not in frozen
    built = discriminative(model, 0.1, 0.2, no_decay=no_decay, split_norms=split_norms)
    held = [p for group in built for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())
    assert len({group["name"] for group in built}) == len(built)
    layers = [group["layer"] for group in built]
    assert layers == sorted(layers) and set(layers) == set(range(len(layer_groups(model))))
    for group in built:
        kept = [i for i, p in enumerate(group["params"]) if not p.requires_grad]
        assert group.get("kept_frozen", []) == kept


def test_param_groups_survive_copies_and_checkpoints() -> None:
    model = tied_model()
    model.body.requires_grad_(False)
    built = discriminative(model, 0.1, 0.2, no_decay=True, split_norms=True)
    optimizer = lrfast.AdamW(built)
    entries = ("name", "layer", "norms", "tied_until", "kept_frozen", "weight_decay", "lr")
    wanted = [{key: group[key] for key in entries if key in group} for group in built]
    other = tied_model()
    loaded = lrfast.AdamW(discriminative(other, 0.5, no_decay=True, split_norms=True))
    loaded.load_state_dict(optimizer.state_dict())
    for copied in (deepcopy(optimizer), loaded):
        found = [{key: g[key] for key in entries if key in g} for g in copied.param_groups]
        assert found == wanted


def test_hundreds_of_groups() -> None:
    model = nn.Sequential(*(linear() for _ in range(465)))
    built = discriminative(model, {f"{i}": 0.1 for i in range(465)}, 0.1, no_decay=True)
    assert len(built) == 930
    assert [group["layer"] for group in built] == [i // 2 for i in range(930)]


def made(**options: Any) -> Callable[[], object]:
    options = {"model": transformer(), "lr": 0.1} | options
    return lambda: discriminative(**options)


ERRORS: list[tuple[type[Exception], Callable[[], object], str]] = [
    (TypeError, lambda: spread({"a": 1}, 3), "n must be the layer groups if lr is a dict, got 3$"),
    (ValueError, made(lr={"embed": 1}), r"rate, got none for layers\.0, layers\.1, head$"),
    (ValueError, made(lr={"*": 1, "hed": 2}), "lr must name groups or match param.*, got 'hed'$"),
    (ValueError, made(lr={}), r"lr must give every group a rate, got none for embed, layers\.0"),
    (ValueError, made(lr={"*": 1, "*.norm.*": -1}), r"lr\['\*\.norm\.\*'\] must be finite and not"),
    (TypeError, made(lr={"*": "1"}), r"lr\['\*'\] must be a number, got '1'"),
    (TypeError, made(lr={0: 1.0}), "lr must have names of groups or patterns as keys, got 0$"),
    (
        ValueError,
        made(lr={"*.norm": 1, "*": 2}),
        r"whole groups, got '\*\.norm', which matches 2 of 4 parameters of group 'layers\.0'",
    ),
    (ValueError, made(decay=2.6), r"decay must lie in \[0, 1\], got 2\.6; .* of 2\.6 pass 1/2\.6$"),
    (ValueError, made(decay=0), "decay must be above 0, got 0; freeze the body instead$"),
    (ValueError, made(decay=-0.5), r"decay must be finite and not negative, got -0\.5"),
    (TypeError, made(decay="0.5"), r"decay must be a number or None, got '0\.5'"),
    (ValueError, made(decay=0.5, lr=slice(1e-2)), "lr must be a number if there is a decay, got s"),
    (
        ValueError,
        made(decay=0.5, lr=[1, 2, 3, 4]),
        r"lr must be a number if .*, got \[1, 2, 3, 4\]",
    ),
    (ValueError, made(decay=0.5, lr={"*": 1}), "lr must be a number if there is a decay, got {"),
    (ValueError, made(decay=0.5, lr=-1), "lr must be finite and not negative, got -1"),
    (ValueError, made(decay=0.5, min_scale=1.5), r"min_scale must lie in \[0, 1\], got 1\.5$"),
    (ValueError, made(min_scale=0.5), r"min_scale must come with a decay, got 0\.5 without one$"),
    (
        ValueError,
        made(no_decay=["bias"]),
        r"no_decay\[0\] must match .*, got 'bias'; .* '\*bias\*'",
    ),
    (TypeError, made(no_decay=["*", 1]), r"no_decay\[1\] must be a string, got 1$"),
    (TypeError, made(no_decay="bias"), "no_decay must be a list, True or None, got 'b"),
    (TypeError, made(no_decay=False), "no_decay must be a list, True or None, got False$"),
]


@pytest.mark.parametrize(("error", "call", "message"), ERRORS)
def test_errors(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
