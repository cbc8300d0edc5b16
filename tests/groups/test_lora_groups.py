"""The param groups of LoRA adapters: by names and structure, as PEFT's, and all that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import BASES, LoRA, make_adapted
from module_trees import parameter, tree
from tiny import OPTIMIZERS, bits, cross_entropy, make_batches
from torch import Tensor, nn
from trainers import load

import lrfast
from lrfast.groups import discriminative, layer_groups

Group = dict[str, Any]
RATES = {"lora A": 0.25, "lora embedding": 0.125, "lora B": 2.0, "lora B, no decay": 2.0}


def groups_of(model: nn.Module, **options: Any) -> dict[str, set[str]]:
    """Names of parameters by the group's, after a check of learning rates and weight decays."""
    built = lrfast.lora_groups(model, 0.25, 8, embedding_lr=0.125, weight_decay=0.3, **options)
    names = {p: name for name, p in model.named_parameters()}
    assert {g["name"]: g["lr"] for g in built}.items() <= RATES.items()
    assert all(g["weight_decay"] == 0.3 * ("no decay" not in g["name"]) for g in built)
    return {group["name"]: {names[p] for p in group["params"]} for group in built}


def matrices(a: str = "lora_A", b: str = "lora_B") -> dict[str, nn.Module]:
    return {a: nn.Linear(3, 2, bias=False), b: nn.Linear(2, 3)}


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def with_dropout(adapted: LoRA) -> LoRA:
    adapted.dropout = nn.Dropout(0.1)
    return adapted


class LoraEmbedding(nn.Embedding):
    """One of loralib: the adapter's parameters are the layer's own."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.weight.requires_grad = False
        self.lora_A, self.lora_B = nn.Parameter(torch.ones(2, 5)), nn.Parameter(torch.ones(3, 2))


# What a model holds -> what its groups hold.
WRITTEN: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, set[str]]]] = {
    "modules beside the layer": (
        lambda: tree(q=tree(base=frozen(nn.Linear(3, 3)), **matrices())),
        {},
        {
            "lora A": {"q.lora_A.weight"},
            "lora B": {"q.lora_B.weight"},
            "lora B, no decay": {"q.lora_B.bias"},
        },
    ),
    "parameters of the layer": (
        lambda: tree(q=LoRA(nn.Linear(3, 3), 3, 3)),
        {},
        {"lora A": {"q.lora_A"}, "lora B": {"q.lora_B"}},
    ),
    "torchtune's names": (
        lambda: tree(q=tree(**matrices("lora_a", "lora_b"))),
        {},
        {
            "lora A": {"q.lora_a.weight"},
            "lora B": {"q.lora_b.weight"},
            "lora B, no decay": {"q.lora_b.bias"},
        },
    ),
    "other names": (
        # A part of a name is a whole one: up_proj is no adapter.
        lambda: tree(q=tree(up_proj=nn.Linear(3, 3, False), **matrices("down", "up"))),
        {"names": ("down", "up")},
        {
            "lora A": {"q.down.weight", "q.up_proj.weight"},
            "lora B": {"q.up.weight"},
            "lora B, no decay": {"q.up.bias"},
        },
    ),
    "an embedding with its own parameters": (
        lambda: tree(embed=LoraEmbedding(), q=LoRA(nn.Linear(3, 3), 3, 3)),
        {},
        {
            "lora embedding": {"embed.lora_A", "embed.lora_B"},
            "lora A": {"q.lora_A"},
            "lora B": {"q.lora_B"},
        },
    ),
    "an embedding beside an adapter": (
        lambda: tree(
            embed=frozen(nn.Embedding(5, 3)), mix=frozen(nn.Linear(3, 3)), lora_B=parameter()
        ),
        {},
        {"lora B": {"lora_B"}},
    ),
    "a wrapped embedding": (
        lambda: tree(embed=with_dropout(LoRA(nn.Embedding(5, 3), 5, 3))),
        {},
        {"lora embedding": {"embed.lora_A", "embed.lora_B"}},
    ),
    "what trains besides": (
        lambda: tree(
            q=LoRA(nn.Linear(3, 3), 3, 3),
            norm=nn.LayerNorm(3),
            head=nn.Linear(3, 2),
            magnitude=parameter(),
            frozen=frozen(nn.Linear(3, 2)),
        ),
        {},
        {
            "lora A": {"q.lora_A", "head.weight"},
            "lora B": {"q.lora_B", "magnitude"},
            "lora B, no decay": {"norm.weight", "norm.bias", "head.bias"},
        },
    ),
    "an adapter that is not active": (
        lambda: tree(
            q=tree(
                lora_A=nn.ModuleDict(
                    {"old": frozen(nn.Linear(3, 2)), "new": nn.Linear(3, 2, False)}
                )
            )
        ),
        {},
        {"lora A": {"q.lora_A.new.weight"}},
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_groups_of_adapters_by_hand(case: str) -> None:
    make, options, wanted = WRITTEN[case]
    assert groups_of(make(), **options) == wanted


def test_weight_decay_is_the_optimizers_unless_it_is_given() -> None:
    groups = lrfast.lora_groups(tree(q=tree(**matrices())), 0.1)
    assert [group.get("weight_decay") for group in groups] == [None, None, 0.0]
    assert [group["lr"] for group in groups] == [0.1, 1.6, 1.6]
    optimizer = lrfast.AdamW(groups, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


ERRORS: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (lambda: nn.Linear(2, 2), {}, "model must have LoRA adapters, got Linear without a parameter"),
    (lambda: make_adapted(), {"names": ("down", "up")}, "without a parameter named down or up"),
    (lambda: frozen(make_adapted()), {}, "an adapter that trains, got 4 frozen parameters"),
    (make_adapted, {"lr": -0.1}, "lr must be finite and not negative, got -0.1"),
    (make_adapted, {"ratio": 0}, "ratio must be finite and above 0, got 0"),
    (make_adapted, {"ratio": float("nan")}, "ratio must be finite and above 0, got nan"),
    (make_adapted, {"embedding_lr": -1.0}, "embedding_lr must be finite and not negative"),
    (make_adapted, {"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
    (make_adapted, {"names": ("lora_A",)}, "names must be two parts of names"),
    (make_adapted, {"names": ("lora_A", "")}, "names must be two parts of names"),
]


@pytest.mark.parametrize(("make", "options", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_are_one_line(
    make: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        lrfast.lora_groups(make(), **{"lr": 0.1} | options)
    assert "\n" not in str(caught.value)


# --- what takes the groups


def data(number: int = 6) -> list[tuple[Tensor, Tensor]]:
    return make_batches(number)


def trained(kind: str, base: str, sweeps: bool) -> Any:
    """Bits of all that a training leaves, with or without a range test before it."""
    model = make_adapted(base)
    optimizer: Any = OPTIMIZERS[kind](lrfast.lora_groups(model, 0.01, 4))
    if sweeps:
        result = lrfast.lr_find(model, optimizer, data(), cross_entropy, num_iter=9, progress=False)
        assert result.notes == ("the loader's 6 batches were cycled for 9 steps",)
        assert result.ratios == (0.25, 1.0)
    losses = []
    for inputs, targets in data():
        losses.append(cross_entropy(model(inputs), targets))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    states = [optimizer.state[p][key] for p in optimizer.state for key in optimizer.state[p]]
    return bits(losses), bits([*model.state_dict().values(), *states])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_range_test_over_adapters_leaves_no_trace(kind: str, base: str) -> None:
    assert trained(kind, base, sweeps=True) == trained(kind, base, sweeps=False)


@pytest.mark.parametrize("base", BASES)
def test_torchs_optimizer_and_its_wrapped_one_train_alike(base: str) -> None:
    ends = []
    for wrap in (lambda optimizer: optimizer, lrfast.wrap):
        model = make_adapted(base)
        optimizer = wrap(torch.optim.AdamW(lrfast.lora_groups(model, 0.02), weight_decay=0.2))
        for inputs, targets in data():
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_a_fine_tuner_trains_the_groups(base: str, tmp_path: Path) -> None:
    def tuned() -> lrfast.FineTuner:
        model = make_adapted(base)
        groups = lrfast.lora_groups(model, 0.01, 4, weight_decay=0.2)
        return lrfast.FineTuner(
            model, data(), data(2), loss_fn=cross_entropy, groups=groups, progress=False
        )

    tuner = tuned()
    frozen = {name: bits(t) for name, t in tuner.model.state_dict().items() if "lora" not in name}
    assert [g["lr"] for g in tuner.optimizer.param_groups] == [0.01, 0.04]
    assert [g["weight_decay"] for g in tuner.optimizer.param_groups] == [0.2, 0.2]
    assert [group.name for group in tuner.groups] == ["lora A", "lora B"]
    result = tuner.lr_find(num_iter=9)
    assert result.ratios == (0.25, 1.0)
    stage = tuner.fit_one_cycle(2, max_lr=[0.02, 0.08])
    assert stage.groups == ("lora A", "lora B") and stage.losses[-1] < stage.losses[0]
    state = tuner.model.state_dict()
    assert {name: bits(state[name]) for name in frozen} == frozen

    tuner.save(tmp_path / "tuner.pt")
    other = tuned()
    other.load(tmp_path / "tuner.pt")
    assert bits(dict(other.model.state_dict())) == bits(dict(state))
    for each in (tuner, other):
        each.fit_one_cycle(1, max_lr=0.05)
    assert bits(dict(other.model.state_dict())) == bits(dict(tuner.model.state_dict()))


def test_param_groups_as_layer_groups() -> None:
    model = make_adapted()
    given = lrfast.lora_groups(model, 0.1, weight_decay=0.2)
    layers = layer_groups(model, given)
    assert [group.options for group in layers] == [
        {"lr": 0.1, "weight_decay": 0.2},
        {"lr": 1.6, "weight_decay": 0.2},
    ]
    assert layers.unassigned == [name for name, _ in model.named_parameters() if "lora" not in name]
    built = discriminative(model, [0.3, 0.4], weight_decay=0.5, groups=given)
    assert [g["lr"] for g in built] == [0.3, 0.4]
    assert [g["weight_decay"] for g in built] == [0.2, 0.2]
    assert [g["layer"] for g in built] == [0, 1]
    # Groups of an optimizer in use, with those of layers, come out as they went in.
    model = tree(a=nn.Linear(3, 3), b=nn.LayerNorm(3))
    made = discriminative(model, [0.3], groups=["*"], no_decay=True, split_norms=True)
    again = discriminative(
        model, [g["lr"] for g in made], groups=torch.optim.SGD(made).param_groups
    )
    assert [g["name"] for g in again] == [g["name"] for g in made]
    assert [g["weight_decay"] for g in again] == [g.get("weight_decay", 0) for g in made]
    assert all("norms" not in g and g["momentum"] == 0 for g in again)


def test_param_groups_may_leave_out_what_is_frozen_only() -> None:
    model = make_adapted()
    first, _ = lrfast.lora_groups(model, 0.1)
    with pytest.raises(ValueError, match=r"every parameter, add 0\.lora_B, 2\.lora_B to one"):
        layer_groups(model, [first])
    with pytest.raises(ValueError, match=r'groups\[0\] must have "params" if a dict'):
        layer_groups(model, [{"lr": 0.1}])
    with pytest.raises(ValueError, match=r"every parameter, add .*0\.base\.weight"):
        layer_groups(model, ["*lora*"])


# --- PEFT's own groups


class Net(nn.Module):
    """One layer of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.body = nn.Linear(8, 8)
        self.last = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of [batch, length] tokens."""
        x = self.norm(self.embed_tokens(tokens))
        x = x + self.conv(x[:, None]).mean(1)
        x = self.last(torch.tanh(self.body(x)))
        outputs: Tensor = self.head(x.mean(1))
        return outputs


ADAPTED: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["body", "last"]},
    "embedding": {"target_modules": ["embed_tokens", "body"]},
    "convolution": {"target_modules": ["conv"]},
    "DoRA": {"target_modules": ["embed_tokens", "conv", "body"], "use_dora": True},
    "rsLoRA": {"target_modules": ["body", "last"], "use_rslora": True},
    "bias of B": {"target_modules": ["body"], "lora_bias": True},
    "all biases": {"target_modules": ["body", "embed_tokens"], "bias": "all"},
    "modules to save": {"target_modules": ["body"], "modules_to_save": ["head", "norm"]},
    "tokens": {"target_modules": ["body"], "trainable_token_indices": [1, 2]},
}


def peft_model(case: str) -> tuple[Any, Any]:
    load("transformers")
    peft = load("peft")
    torch.manual_seed(3)
    return peft, peft.get_peft_model(Net(), peft.LoraConfig(r=2, **ADAPTED[case]))


def pefts(model: Any) -> list[Group]:
    from peft.optimizers import create_loraplus_optimizer

    options = {"loraplus_lr_embedding": 0.125, "loraplus_weight_decay": 0.3}
    made = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.25, loraplus_lr_ratio=8.0, **options
    )
    return [
        {key: group[key] for key in ("params", "lr", "weight_decay")}
        for group in made.param_groups
        if group["params"]
    ]


def ours(model: nn.Module) -> list[Group]:
    built = lrfast.lora_groups(model, 0.25, 8, embedding_lr=0.125, weight_decay=0.3)
    return [{key: value for key, value in group.items() if key != "name"} for group in built]


def same(these: list[Group], those: list[Group]) -> bool:
    def plain(groups: list[Group]) -> list[Any]:
        return [[*map(id, g["params"]), g["lr"], g["weight_decay"]] for g in groups]

    return plain(these) == plain(those)


@pytest.mark.parametrize("case", ADAPTED)
def test_the_groups_are_pefts(case: str) -> None:
    _, model = peft_model(case)
    assert same(ours(model), pefts(model))


def test_the_groups_follow_the_active_adapter_as_pefts_do() -> None:
    peft, model = peft_model("linear")
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["last", "embed_tokens"]))
    first = ours(model)
    model.set_adapter("second")
    second = ours(model)
    assert same(second, pefts(model)) and not same(first, second)
    held = {p for group in second for p in group["params"]}
    assert held == {p for name, p in model.named_parameters() if ".second" in name}
    model.base_model.set_adapter(["default", "second"])
    assert same(ours(model), pefts(model)) and len(ours(model)) == len(second)


def test_the_groups_of_an_unfrozen_embedding_are_pefts() -> None:
    _, model = peft_model("embedding")
    model.get_submodule("base_model.model.embed_tokens.base_layer").requires_grad_(True)
    assert same(ours(model), pefts(model))


@pytest.mark.parametrize("case", ADAPTED)
def test_a_range_test_over_pefts_adapters_leaves_no_trace(case: str) -> None:
    def trained(sweeps: bool) -> Any:
        _, model = peft_model(case)
        optimizer = lrfast.AdamW(lrfast.lora_groups(model, 0.01), weight_decay=0.1)
        tokens = torch.arange(24).reshape(4, 6) % 20
        batches = [(tokens, tokens[:, 0] % 3), ((tokens + 1) % 20, tokens[:, 1] % 3)]
        if sweeps:
            result = lrfast.lr_find(
                model, optimizer, batches, cross_entropy, num_iter=9, progress=False
            )
            assert result.notes == ("the loader's 2 batches were cycled for 9 steps",)
        for inputs, targets in batches:
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        return bits(dict(model.state_dict()))

    assert trained(sweeps=True) == trained(sweeps=False)
