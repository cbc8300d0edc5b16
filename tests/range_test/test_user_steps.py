"""Whose step it is: scalers that skip, closures, the user's own, models that return losses."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    OPTIMIZERS,
    OURS,
    bits,
    cross_entropy,
    make_batches,
    make_model,
    trace,
    used_rates,
)
from torch import Tensor, nn

import lrfast
from lrfast import RangeTest, lr_find

PLAIN: dict[str, Any] = {
    "diverge_threshold": None,
    "progress": False,
    "start_lr": 1e-3,
    "end_lr": 0.5,
}
RATES = np.geomspace(1e-3, 0.5, 10)


def make_optimizer(kind: str, groups: Any) -> Any:
    if kind == "fused-sgd":
        # No momentum: torch leaves its buffer uninitialised when the first step is skipped.
        return torch.optim.SGD(groups, lr=0.05, weight_decay=0.01, fused=True)
    if kind == "fused-adamw":
        return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, fused=True)
    return OPTIMIZERS[kind](groups)


# A scaler that skips steps. Gradients of a loss near 8 overflow float32 at a scale of 2**127, not
# at 2**124; every third good step doubles the scale, so that a sweep meets overflows repeatedly.


def make_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)


def large(outputs: Tensor, targets: Tensor) -> Tensor:
    return 8 * cross_entropy(outputs, targets)


def rates_of_moves(model: nn.Module, optimizer: Any) -> list[float]:
    """A list that grows by the rate used at each call of step that changes the parameters."""
    moves: list[float] = []
    before: list[Any] = []
    weight = next(model.parameters())

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        ours = hasattr(optimizer, "last_rates")
        rate = optimizer.last_rates[0] if ours else optimizer.param_groups[0]["lr"]
        if bits(weight) != before[-1]:
            moves.append(float(rate))

    optimizer.register_step_pre_hook(lambda o, a, k: before.append(bits(weight)))
    optimizer.register_step_post_hook(note)
    return moves


FUSED = ("fused-sgd", "fused-adamw")


@pytest.mark.parametrize("kind", [*OPTIMIZERS, *FUSED])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lag": 1},
        {"gradient_accumulation_steps": 2},
        {"val_loader": make_batches(2)},
        {"repeats": 2},
    ],
    ids=["plain", "lag", "accumulate", "valid", "repeats"],
)
def test_a_skipped_step_adds_no_point(kind: str, options: dict[str, Any]) -> None:
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(kind, model.parameters())
    scaler = make_scaler()
    untouched = bits(scaler.state_dict()), trace(model, optimizer)
    moves = rates_of_moves(model, optimizer)
    calls = 0

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return large(outputs, targets)

    batches = make_batches(40)
    result = lr_find(
        model, optimizer, batches, criterion, num_iter=10, scaler=scaler, **PLAIN, **options
    )
    np.testing.assert_allclose(result.lrs, RATES, rtol=1e-12)
    assert result.outcome == "completed"
    sweeps = options.get("repeats", 1)
    made = calls // options.get("gradient_accumulation_steps", 1)
    assert made > 11 * sweeps  # some were skipped
    assert moves == result.lrs.tolist() * sweeps
    assert (bits(scaler.state_dict()), trace(model, optimizer)) == untouched


@pytest.mark.parametrize("kind", [*OPTIMIZERS, *FUSED])
def test_with_a_scaler_that_never_skips_the_curve_is_the_same(kind: str) -> None:
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)):
        torch.manual_seed(3)
        model = make_model()
        optimizer = make_optimizer(kind, model.parameters())
        results.append(
            lr_find(model, optimizer, make_batches(4), large, num_iter=20, scaler=scaler, **PLAIN)
        )
    assert bits(results[0].losses) == bits(results[1].losses)


def test_a_scaler_in_use_goes_on_where_it_was() -> None:
    """Also its growth count, and the gradients that it had unscaled already."""
    model = nn.Linear(4, 3)
    optimizer = make_optimizer("adamw", model.parameters())
    scaler = make_scaler()
    for inputs, targets in make_batches(5):
        optimizer.zero_grad()
        scaler.scale(large(model(inputs), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
    before = bits(scaler.state_dict()), trace(model, optimizer)
    options = {"num_iter": 10, "scaler": scaler, **PLAIN}
    lr_find(model, optimizer, make_batches(4), large, **options)
    assert (bits(scaler.state_dict()), trace(model, optimizer)) == before
    with pytest.raises(RuntimeError, match="boom"):
        lr_find(model, optimizer, make_batches(4), scripted_failure(3), **options)
    assert (bits(scaler.state_dict()), trace(model, optimizer)) == before
    scaler.scale(large(model(inputs), targets)).backward()
    scaler.unscale_(optimizer)


def scripted_failure(at: int) -> Any:
    calls = 0

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("boom")
        return large(outputs, targets)

    return criterion


def test_a_scaler_that_skips_every_step_comes_to_an_end() -> None:
    model = nn.Linear(4, 3)
    optimizer = make_optimizer("sgd", model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999)
    result = lr_find(model, optimizer, make_batches(4), large, num_iter=10, scaler=scaler, **PLAIN)
    assert len(result.lrs) == 0 and result.suggestion.lr is None


# The user's own step.


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_function_is_the_same_as_a_loss_function(kind: str, lag: int) -> None:
    curves = []
    for own in (False, True):
        torch.manual_seed(3)
        model = make_model()
        optimizer = make_optimizer(kind, lrfast.discriminative(model, [0.01, 0.02, 0.05]))
        options = {"num_iter": 10, "lag": lag, **PLAIN}
        before = trace(model, optimizer)
        if own:
            step = make_step(model, optimizer)
            result = lr_find(model, optimizer, make_batches(11), step_fn=step, **options)
        else:
            result = lr_find(model, optimizer, make_batches(11), cross_entropy, **options)
        assert trace(model, optimizer) == before
        curves.append(result)
    assert bits(curves[0].lrs) == bits(curves[1].lrs)
    assert bits(curves[0].losses) == bits(curves[1].losses)


def make_step(model: nn.Module, optimizer: Any, skips: Any = lambda call: False) -> Any:
    """A whole training step; its update is left out in calls that ``skips`` says."""
    calls = 0

    def step(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if not skips(calls):
            optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_function_that_skips_updates(kind: str, trained: bool, lag: int) -> None:
    """Each rate once, with the loss of the update that used it, from the first call on."""
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(kind, model.parameters())
    if trained:
        make_step(model, optimizer)(make_batches(1)[0])
    used = used_rates(optimizer)
    before = trace(model, optimizer)
    inner = make_step(model, optimizer, lambda call: call in (1, 2, 6, 9))
    losses: list[float] = []

    def step(batch: Any) -> Tensor:
        count = len(used)
        loss = inner(batch)
        if len(used) > count:
            losses.append(loss.item())
        return loss

    batches = make_batches(30)
    result = lr_find(model, optimizer, batches, step_fn=step, num_iter=10, lag=lag, **PLAIN)
    np.testing.assert_allclose(result.lrs, RATES, rtol=1e-12)
    assert [row[0] for row in used][:10] == result.lrs.tolist()
    assert result.losses.tolist() == losses[lag : lag + 10]
    assert trace(model, optimizer) == before


@pytest.mark.parametrize("kind", [*OPTIMIZERS, *FUSED])
def test_a_step_function_with_a_scaler_of_its_own(kind: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(kind, model.parameters())
    scaler = make_scaler()
    before = bits(scaler.state_dict()), trace(model, optimizer)
    moves = rates_of_moves(model, optimizer)
    calls = 0

    def step(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = large(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    result = lr_find(
        model, optimizer, make_batches(40), step_fn=step, num_iter=10, others=[scaler], **PLAIN
    )
    np.testing.assert_allclose(result.lrs, RATES, rtol=1e-12)
    assert moves == result.lrs.tolist() and calls > 11
    assert (bits(scaler.state_dict()), trace(model, optimizer)) == before


# An optimizer that asks for the loss.


def closure_sweep(**options: Any) -> tuple[RangeTest, list[float]]:
    model = make_model().double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=3, history_size=4)
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda o, a, k: rates.append(o.param_groups[0]["lr"]))
    batches = [(x.double(), y) for x, y in make_batches(12)]
    before = trace(model, optimizer)
    result = lr_find(model, optimizer, batches, cross_entropy, num_iter=10, **PLAIN, **options)
    assert trace(model, optimizer) == before
    return result, rates


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("sets_tensor", [False, True])
def test_a_step_function_may_not_update_at_another_learning_rate(
    kind: str, sets_tensor: bool
) -> None:
    """A warm-up in the step would train at its own, behind the curve's learning rates."""
    model = make_model()
    optimizer = make_optimizer(kind, model.parameters())
    before = trace(model, optimizer)

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        rate = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = torch.tensor(2 * float(rate)) if sets_tensor else 2 * rate
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        return loss

    with pytest.raises(ValueError, match="step must keep the learning rates, got"):
        lr_find(model, optimizer, make_batches(10), step_fn=step, num_iter=10, **PLAIN)
    assert trace(model, optimizer) == before


def test_a_closure() -> None:
    result, rates = closure_sweep()
    np.testing.assert_allclose(result.lrs, RATES, rtol=1e-12)
    assert rates == result.lrs.tolist()
    model = make_model().double()
    inputs, targets = make_batches(1)[0]
    assert result.losses[0] == cross_entropy(model(inputs.double()), targets).item()


def test_a_closure_with_the_other_options() -> None:
    plain, _ = closure_sweep()
    later, rates = closure_sweep(lag=1)
    assert len(rates) == 10 and bits(later.losses[:-1]) == bits(plain.losses[1:])
    valid = [(x.double(), y) for x, y in make_batches(2)]
    judged, _ = closure_sweep(val_loader=valid)
    assert bits(judged.losses) != bits(plain.losses)
    two, rates = closure_sweep(gradient_accumulation_steps=2)
    assert len(two.lrs) == len(rates) == 10
    raced, _ = closure_sweep(verify=4)
    assert raced.race is not None and len(raced.race.candidates) > 1


def test_a_closures_validation_loss_comes_after_the_update() -> None:
    """A quadratic: at the rate 1 and without history a step of LBFGS is one along the gradient."""
    weight = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=1)

    def compute_loss(model: Any, batch: Any) -> Tensor:
        return (weight**2).sum()

    options: Any = {"compute_loss": compute_loss, "num_iter": 4, **PLAIN}
    before = lr_find(model, optimizer, [torch.ones(1)], **options)
    after = lr_find(model, optimizer, [torch.ones(1)], val_loader=[torch.ones(1)], **options)
    assert before.losses[0] == 9.0
    np.testing.assert_allclose(after.losses[:-1], before.losses[1:], rtol=1e-14)


# Models that return their loss.

Outputs = namedtuple("Outputs", "loss logits")


class Own(nn.Module):
    """Returns its loss in one of the usual ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.way = way

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.body(x)
        loss = cross_entropy(logits, labels)
        return {
            "scalar": loss,
            "attribute": SimpleNamespace(loss=loss, logits=logits),
            "dict": {"logits": logits, "loss": loss},
            "namedtuple": Outputs(loss, logits),
            "tuple": (loss, logits),
            "no loss": logits,
            "no dict entry": {"logits": logits},
            "empty": (),
            "none": SimpleNamespace(loss=None),
        }[self.way]


@pytest.mark.parametrize("batch", ["tuple", "list", "dict"])
@pytest.mark.parametrize("way", ["scalar", "attribute", "dict", "namedtuple", "tuple"])
@pytest.mark.parametrize("kind", [OURS[0], "torch-adamw"])
def test_a_model_that_returns_its_loss(kind: str, way: str, batch: str) -> None:
    torch.manual_seed(4)
    model = Own(way)
    kinds = {"tuple": tuple, "list": list, "dict": lambda b: {"labels": b[1], "x": b[0]}}
    data = [kinds[batch](b) for b in make_batches(5)]
    optimizer = make_optimizer(kind, model.parameters())
    result = lr_find(model, optimizer, data, num_iter=10, **PLAIN)
    wanted = lr_find(model.body, optimizer, make_batches(5), cross_entropy, num_iter=10, **PLAIN)
    assert bits(result.losses) == bits(wanted.losses)
    judged = lr_find(model, optimizer, data, val_loader=data, num_iter=10, **PLAIN)
    assert len(judged.lrs) == 10


@pytest.mark.parametrize("way", ["no loss", "no dict entry", "empty", "none"])
def test_a_model_that_returns_no_loss(way: str) -> None:
    model = Own(way)
    optimizer = make_optimizer("sgd", model.parameters())
    with pytest.raises(TypeError, match="the model must return its loss as a scalar"):
        lr_find(model, optimizer, make_batches(3), num_iter=5, progress=False)
    with pytest.raises(TypeError, match="entries are the arguments of Own: missing a required"):
        lr_find(model, optimizer, [torch.ones(2, 4)], num_iter=5, progress=False)


def test_batches_of_three_give_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.body(one - 2 * other)

    model = Two()
    optimizer = make_optimizer("adamw", model.parameters())
    triples = [(3 * x, x, y) for x, y in make_batches(5)]
    result = lr_find(model, optimizer, triples, cross_entropy, num_iter=8, **PLAIN)
    wanted = lr_find(model.body, optimizer, make_batches(5), cross_entropy, num_iter=8, **PLAIN)
    np.testing.assert_allclose(result.losses, wanted.losses, rtol=1e-5)
