"""What statistics and weights of norms in frozen groups do under each policy, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from module_trees import linear, tree
from tiny import bits
from torch import nn

import lrfast
from lrfast.groups import NormPolicy, discriminative, freeze, freeze_to, set_norm_mode, unfreeze

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "ours": lambda p: lrfast.AdamW(p, lr=0.01),
    "torch": lambda p: torch.optim.AdamW(p, lr=0.01),
}
KINDS = pytest.mark.parametrize("kind", OPTIMIZERS)


class Net(nn.Module):
    """Three layer groups, two with a norm, and norms without parameters in the first and second."""

    def __init__(self) -> None:
        super().__init__()
        plain = nn.BatchNorm1d(3, affine=False)
        self.body = tree(fc=linear(), plain=plain, bn=nn.BatchNorm1d(3))
        self.neck = tree(fc=linear(), bn=nn.SyncBatchNorm(3), plain=nn.BatchNorm1d(3, affine=False))
        self.head = linear()

    def forward(self, x: Any) -> Any:
        x = self.body.bn(self.body.plain(self.body.fc(x)))
        neck = self.neck
        x = nn.functional.batch_norm(
            neck.fc(x),
            neck.bn.running_mean,
            neck.bn.running_var,
            neck.bn.weight,
            neck.bn.bias,
            neck.bn.training,
        )
        return self.head(neck.plain(x))


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net()


def build(kind: str, model: Any, first: int, *, train_norms: bool = False) -> Any:
    optimizer = OPTIMIZERS[kind](discriminative(model, 0.01, split_norms=train_norms))
    freeze_to(optimizer, first, train_norms=train_norms)
    return optimizer


def changed(model: Any, optimizer: Any, policy: NormPolicy | None) -> set[str]:
    """Names of the parameters and statistics that two epochs of three steps change."""
    before = bits(model.state_dict())
    for _ in range(2):
        model.train()
        if policy is not None:
            set_norm_mode(model, optimizer, policy)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
        model.eval()
    after = bits(model.state_dict())
    return {name for (name, a), (_, b) in zip(before, after, strict=True) if a != b}


NECK_FC = {"neck.fc.weight", "neck.fc.bias"}
HEAD = {"head.weight", "head.bias"}


def statistics(*paths: str) -> set[str]:
    # The neck's first norm is called as a function, which keeps no count.
    counted = [path for path in paths if path != "neck.bn"]
    found = {f"{path}.{name}" for path in paths for name in ("running_mean", "running_var")}
    return found | {f"{path}.num_batches_tracked" for path in counted}


def weights(*paths: str) -> set[str]:
    return {f"{path}.{name}" for path in paths for name in ("weight", "bias")}


ALL = ("body.plain", "body.bn", "neck.bn", "neck.plain")


@KINDS
@pytest.mark.parametrize("policy", [None, "train"])
def test_train_lets_statistics_of_frozen_groups_move(kind: str, policy: NormPolicy | None) -> None:
    model = net()
    optimizer = build(kind, model, 1)
    wanted = statistics(*ALL) | weights("neck.bn") | NECK_FC | HEAD
    assert changed(model, optimizer, policy) == wanted


@KINDS
def test_keep_keeps_them_until_their_group_trains(kind: str) -> None:
    model = net()
    optimizer = build(kind, model, 2)
    assert set_norm_mode(model, optimizer, "keep") == list(ALL)
    assert changed(model, optimizer, "keep") == HEAD
    freeze_to(optimizer, 1)
    wanted = statistics("neck.bn", "neck.plain") | weights("neck.bn") | NECK_FC | HEAD
    assert changed(model, optimizer, "keep") == wanted
    unfreeze(optimizer)
    assert changed(model, optimizer, "keep") == set(model.state_dict()) - {
        "neck.bn.num_batches_tracked"
    }


@KINDS
def test_keep_uses_the_statistics_that_it_keeps(kind: str) -> None:
    """The frozen body computes what it computes in evaluation."""
    model = net()
    optimizer = build(kind, model, 1)
    changed(model, optimizer, "train")  # gives it some statistics
    inputs = torch.randn(8, 3)

    def body(model: Any) -> Any:
        return model.body.bn(model.body.plain(model.body.fc(inputs)))

    wanted = body(model)
    model.train()
    assert not torch.equal(body(deepcopy(model)), wanted)
    set_norm_mode(model, optimizer, "keep")
    assert torch.equal(body(model), wanted)


@KINDS
def test_adapt_trains_norms_alone_in_frozen_groups(kind: str) -> None:
    model = net()
    optimizer = build(kind, model, 2, train_norms=True)
    wanted = statistics(*ALL) | weights("body.bn", "neck.bn") | HEAD
    assert changed(model, optimizer, "adapt") == wanted
    unfreeze(optimizer)
    assert "body.fc.weight" in changed(model, optimizer, "adapt")
    freeze(optimizer, train_norms=True)
    assert changed(model, optimizer, "adapt") == wanted


def test_adapt_leaves_norms_that_the_user_froze() -> None:
    model = net()
    model.body.bn.requires_grad_(False)
    optimizer = build("ours", model, 2, train_norms=True)
    wanted = statistics(*ALL) | weights("neck.bn") | HEAD
    assert changed(model, optimizer, "adapt") == wanted


def test_adapt_asks_for_no_param_groups_of_norms_that_the_user_froze() -> None:
    model = net()
    model.body.bn.requires_grad_(False)
    model.neck.bn.requires_grad_(False)
    assert set_norm_mode(model, build("ours", model, 2), "adapt") == []


def test_a_norm_that_the_user_froze_is_kept_in_a_group_that_trains() -> None:
    model = net()
    model.body.bn.requires_grad_(False)
    optimizer = build("ours", model, 0)
    assert set_norm_mode(model, optimizer, "keep") == ["body.bn"]


def test_a_frozen_param_group_counts_even_where_gradients_are_required() -> None:
    """The mask alone freezes for our optimizers."""
    model = net()
    optimizer = build("ours", model, 0)
    optimizer.param_groups[0]["frozen"] = True
    assert set_norm_mode(model, optimizer, "keep") == ["body.plain", "body.bn"]


def test_a_policy_takes_over_from_another_without_train() -> None:
    model = net()
    optimizer = build("ours", model, 2)
    set_norm_mode(model, optimizer, "keep")
    assert set_norm_mode(model, optimizer, "train") == []
    assert all(module.training for module in model.modules())
    set_norm_mode(model, optimizer, "keep")
    unfreeze(optimizer)
    assert set_norm_mode(model, optimizer, "keep") == []
    assert all(module.training for module in model.modules())


def test_only_layers_with_statistics_are_touched() -> None:
    model = nn.Sequential(
        tree(fc=linear(), norm=nn.LayerNorm(3), drop=nn.Dropout()),
        nn.BatchNorm1d(3, track_running_stats=False),
        linear(),
    )
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze(optimizer)
    assert set_norm_mode(model, optimizer, "keep") == []
    assert all(module.training for module in model.modules())


def test_a_model_that_is_a_norm_without_parameters_beside_a_layer() -> None:
    """The nearest module around with parameters may be the whole model."""
    model = nn.Sequential(linear(), nn.BatchNorm1d(3, affine=False), linear())
    optimizer = torch.optim.SGD(discriminative(model, 0.1))
    freeze(optimizer)
    assert set_norm_mode(model, optimizer, "keep") == []


def frozen(policy: Any, *, training: bool = True, train_norms: bool = False) -> Callable[[], Any]:
    def call() -> None:
        model = net()
        optimizer = build("ours", model, 2, train_norms=train_norms)
        if train_norms:
            freeze_to(optimizer, 1)
        set_norm_mode(model.train(training), optimizer, policy)

    return call


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (frozen("freeze"), "policy must be 'train', 'keep' or 'adapt', got 'freeze'$"),
    (frozen(None), "policy must be 'train', 'keep' or 'adapt', got None$"),
    (frozen("keep", training=False), "model must be in training mode, got one in evaluation mode$"),
    (frozen("adapt"), r"'adapt' needs .* that train, got body\.bn, neck\.bn in frozen groups; use"),
    (frozen("adapt", train_norms=True), r"'adapt' needs .* that train, got body\.bn in frozen gro"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
