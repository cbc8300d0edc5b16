"""Param groups whose states stay in float32, by kind of layer and by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrfast


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(90, 64)
        self.norm = nn.LayerNorm(64)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 90)
        self.head.weight = self.words.weight


def wide_names(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    names = {p: name for name, p in model.named_parameters()}
    wide = [group for group in groups if group.get("state_dtype") is torch.float32]
    return [names[p] for group in wide for p in group["params"]]


def test_embeddings_and_norms_are_the_default() -> None:
    """A tied head goes with its embedding, and frozen parameters are left out."""
    model = Words()
    model.hidden.bias.requires_grad_(False)
    groups = lrfast.state_groups(model)
    assert wide_names(model, groups) == ["words.weight", "norm.weight", "norm.bias"]
    assert sum(len(group["params"]) for group in groups) == 5


def test_names() -> None:
    model = Words()
    groups = lrfast.state_groups(model, float32=["hidden", "*.bias"])
    wanted = ["norm.bias", "hidden.weight", "hidden.bias", "head.bias"]
    assert wide_names(model, groups) == wanted
    assert lrfast.state_groups(model, float32=[])[0].keys() == {"params"}


def test_groups_keep_what_they_have() -> None:
    """Rates, layers and positions of what is frozen; and a state dtype of their own."""
    model = Words()
    model.norm.bias.requires_grad_(False)
    model.hidden.bias.requires_grad_(False)
    given = lrfast.discriminative(model, 1e-2, groups=["*"])
    (both,) = given
    first, second = lrfast.state_groups(model, given)
    assert first.keys() == both.keys() and second.keys() == {*both, "state_dtype"}
    for part in (first, second):
        assert (part["lr"], part["layer"], part["name"]) == (1e-2, 0, "*")
        frozen = [part["params"][place] for place in part["kept_frozen"]]
        assert frozen == [p for p in part["params"] if not p.requires_grad] and len(frozen) == 1
    assert "state_dtype" not in both and len(both["params"]) == 6
    own = [{"params": model.words.weight, "state_dtype": "8bit"}, {"params": model.norm.weight}]
    parts = lrfast.state_groups(model, own)
    assert [group["state_dtype"] for group in parts] == ["8bit", torch.float32]
    named = lrfast.state_groups(model, [{"params": model.named_parameters(), "lr": 0.5}])
    optimizer = lrfast.AdamW(named, state_dtype="8bit")
    assert [group["param_names"][0] for group in optimizer.param_groups] == [
        "hidden.weight",
        "words.weight",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"float32": ["words", "gone"]}, ValueError, r"float32\[1\] must match .* got 'gone'"),
        ({"float32": "words"}, TypeError, "float32 must be .*got 'words'"),
        ({"groups": [{"lr": 0.1}]}, ValueError, r'groups\[0\] must have "params", got \[\'lr\'\]'),
        ({"groups": [torch.ones(2)]}, TypeError, "groups"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lrfast.state_groups(Words(), **arguments)
