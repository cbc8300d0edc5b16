"""Hidden matrices, apart from embeddings, heads, norms and biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfast


class Transformer(nn.Module):
    """A small language model; its head may be tied to its table."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions + self.token
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x)).flatten(0, 1)
        return logits


def names(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Names of the parameters in each group."""
    known = {p: name for name, p in model.named_parameters()}
    return {group["name"]: [known[p] for p in group["params"]] for group in groups}


_LAYERS = [
    f"layers.{i}.{name}.weight"
    for i in range(2)
    for name in ("self_attn.in_proj_", "self_attn.out_proj", "linear1", "linear2")
]
HIDDEN = [name.replace("_.weight", "_weight") for name in _LAYERS]


@pytest.mark.parametrize("tied", [False, True])
def test_a_transformer_is_sorted(tied: bool) -> None:
    model = Transformer(tied)
    groups = lrfast.muon_groups(model, 0.02, 3e-4, weight_decay=0.1)
    found = names(model, groups)
    assert found["hidden matrices"] == HIDDEN
    assert found["embeddings"] == ["embed.weight"]
    assert found.get("head", []) == ([] if tied else ["lm_head.weight"])
    assert found["others"] == ["positions", "token"]
    rest = set(found["norms and biases"])
    assert {"norm.weight", "layers.1.linear2.bias", "layers.0.self_attn.in_proj_bias"} <= rest
    assert sum(map(len, found.values())) == len(list(model.parameters()))
    settings = {group["name"]: (group["rule"], group["lr"]) for group in groups}
    assert settings.pop("hidden matrices") == ("muon", 0.02)
    assert set(settings.values()) == {("adamw", 3e-4)}
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays.pop("norms and biases") == 0.0 and set(decays.values()) == {0.1}


def test_convolutions_are_matrices_unless_they_are_grouped() -> None:
    model = nn.Sequential()
    for name, layer in (
        ("patch_embed", nn.Conv2d(3, 8, 2)),
        ("conv", nn.Conv2d(8, 8, 3)),
        ("depthwise", nn.Conv2d(8, 8, 3, groups=8)),
        ("bn", nn.BatchNorm2d(8)),
        ("hidden", nn.Linear(8, 6)),
        ("out", nn.Linear(6, 2)),
    ):
        model.add_module(name, layer)
    model.get_submodule("conv").bias.requires_grad = False  # type: ignore[union-attr]
    found = names(model, lrfast.muon_groups(model, 0.02, 3e-4))
    assert found["hidden matrices"] == ["conv.weight", "hidden.weight"]
    assert found["embeddings"] == ["patch_embed.weight"]
    assert found["head"] == ["out.weight"] and found["others"] == ["depthwise.weight"]
    assert "conv.bias" not in found["norms and biases"]
    more = lrfast.muon_groups(model, 0.02, 3e-4, adamw=["hidden"])
    assert names(model, more)["others"] == ["depthwise.weight", "hidden.weight"]


def test_a_model_without_a_head_has_only_hidden_matrices() -> None:
    body = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)))
    assert "head" not in names(body, lrfast.muon_groups(body, 0.02, 3e-4))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(3, 2), {}, "model must have hidden matrices that train, got none"),
        (Transformer(), {"adamw": ["layer"]}, r"adamw\[0\] must match .* '\*layer\*'"),
        (Transformer(), {"lr": -1.0}, "lr must be"),
        (nn.LazyLinear(2), {}, "must have initialised parameters, got 'weight'"),
    ],
)
def test_errors(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrfast.muon_groups(model, **{"lr": 0.02, "adamw_lr": 3e-4, **options})


def test_the_fine_tuner_trains_both_rules_and_resumes(tmp_path: Any) -> None:
    torch.manual_seed(5)
    batches = [(torch.randint(11, (4, 5)), torch.randint(11, (20,))) for _ in range(4)]
    state = Transformer().state_dict()

    def make() -> lrfast.FineTuner:
        model = Transformer()
        model.load_state_dict(state)
        return lrfast.FineTuner(
            *(model, batches, batches[:1]),
            loss_fn=nn.functional.cross_entropy,
            optimizer=lrfast.Muon,
            groups=lrfast.muon_groups(model, 0.02, 3e-3),
            max_grad_norm=0.5,
            ema_decay=0.6,
            progress=False,
        )

    whole, first, second = make(), make(), make()
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert rates == [0.02] + [3e-3] * 4
    whole.fit_one_cycle(2, max_lr=rates)
    first.fit_one_cycle(2, max_lr=rates)
    first.save(tmp_path / "tuner.pt")
    second.load(tmp_path / "tuner.pt")
    for tuner in (whole, second):
        tuner.freeze_to(-1)
        tuner.fit_flat_cos(1, lr=1e-3)
    pairs = zip(whole.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    losses = whole.history.stages[0].epochs
    assert len(losses) == 2
