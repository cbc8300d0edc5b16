"""A captured training step gives, bit for bit, what an eager one gives, also while a user changes
rates, schedules and what is frozen. On the CPU the same object runs eagerly."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captures import (
    ADAMW,
    LION,
    SGD,
    Change,
    Training,
    assert_same,
    copied,
    make_batches,
    train_both,
)
from torch import nn

import lrfast
from lrfast import schedules as S

LONG = S.linear(0.5, 1.0, 5).then(S.sgdr(3, 2.0, 4)) * S.one_cycle(90, momentum=(0.9, 0.7))


@pytest.mark.parametrize("zeroing", ["step", "before", "after", "in place"])
@pytest.mark.parametrize("make", [ADAMW, SGD, LION], ids=["adamw", "sgd", "lion"])
def test_fifty_steps_equal_eager_ones(
    make: Callable[..., Any], zeroing: str, device: torch.device
) -> None:
    if zeroing == "step":
        make = partial(make, zero_grads=True)
    _, captured, step = train_both({}, device, steps=50, make=make, zeroing=zeroing)
    assert step.captures == 1
    runs = captured.calls - 50 if device.type == "cpu" else captured.calls - 1
    assert runs == 3  # of the warm-up


def test_a_step_that_accumulates_over_calls(device: torch.device) -> None:
    """Nobody zeroes: a graph captured with gradients that are None would not add up."""
    make = partial(SGD, max_grad_norm=0.4)
    train_both({}, device, steps=6, make=make, zeroing="never")


@pytest.mark.parametrize("options", [{"skip_nonfinite": True}, {"telemetry": 8}], ids=str)
def test_more_options(options: dict[str, Any], device: torch.device) -> None:
    make = partial(ADAMW, **options)
    eager, captured, _ = train_both({}, device, make=make)
    if "telemetry" in options:
        assert torch.equal(captured.optimizer.telemetry().rates, eager.optimizer.telemetry().rates)


# ---- what changes without a new capture ----------------------------------------------------------


def _rates(training: Training) -> None:
    for factor, group in zip((0.3, 2.0), training.optimizer.param_groups, strict=True):
        group["lr"] *= factor
        group["weight_decay"] = 0.05 * factor


def _plateau(training: Training) -> None:
    plateau = lrfast.Plateau(training.optimizer, factor=0.25, patience=0)
    for loss in (1.0, 2.0):
        plateau.observe(loss)


def _freeze(training: Training) -> None:
    training.optimizer.param_groups[0]["frozen"] = True


def _unfreeze(training: Training) -> None:
    training.optimizer.param_groups[0]["frozen"] = False


LIVE: dict[str, dict[int, Change]] = {
    "rates": {4: _rates, 9: _rates},
    "frozen later": {4: _freeze, 12: _unfreeze, 15: _freeze},
    "freeze_to": {
        4: lambda t: lrfast.freeze_to(t.optimizer, 1),
        12: lambda t: lrfast.freeze_to(t.optimizer, 0),
    },
    "frozen first": {0: _freeze, 7: _unfreeze},
    "longer schedule": {6: lambda t: t.optimizer.set_schedule(LONG)},
    "no schedule": {6: lambda t: t.optimizer.set_schedule(None)},
    "one for each group": {3: lambda t: t.optimizer.set_schedule([S.cosine(9), None])},
    "plateau": {8: _plateau},
    "clipping": {5: lambda t: setattr(t.optimizer, "max_grad_norm", 0.05)},
    "a group's clipping": {5: lambda t: t.optimizer.param_groups[1].update(max_grad_norm=0.01)},
    "betas": {5: lambda t: t.optimizer.param_groups[1].update(betas=(0.5, 0.7))},
    "schedule's step": {6: lambda t: t.optimizer._set_schedule_step(20)},
}


@pytest.mark.parametrize("name", LIVE)
def test_changes_that_act_at_once(name: str, device: torch.device) -> None:
    _, _, step = train_both(LIVE[name], device)
    assert step.captures == 1


def test_a_layer_that_was_frozen_when_captured(device: torch.device) -> None:
    """Its states are made when it first trains, outside the graph."""

    def make(groups: list[dict[str, Any]]) -> Any:
        groups[0]["frozen"] = True
        return ADAMW(groups)

    _, captured, step = train_both({7: _unfreeze}, device, make=make)
    assert step.captures == 1
    assert float(captured.optimizer.state[captured.body[0].weight]["step"]) == 24 - 7


def test_momentum_that_appears(device: torch.device) -> None:
    def add(training: Training) -> None:
        training.optimizer.param_groups[0]["momentum"] = 0.9

    make = partial(lrfast.SGD, weight_decay=0.1)
    _, captured, step = train_both({5: add}, device, make=make, zeroing="before")
    assert step.captures == 1
    assert "momentum_buffer" in captured.optimizer.state[captured.body[0].weight]


def test_tables_do_not_move(device: torch.device) -> None:
    """What a graph holds by value stays: the tables are edited in place."""
    training = Training(device=device)
    step = training.capture()
    batch = make_batches(1, device)[0]
    step(batch)
    engine = training.optimizer._engine
    assert engine is not None
    before = engine.addresses()
    for changes in LIVE.values():
        for change in changes.values():
            if change is not _plateau or training.optimizer._loss_factor is None:
                change(training)
            step(batch)
            assert engine.addresses() == before
    assert step.captures == 1


# ---- the curve, its flag, scalers ----------------------------------------------------------------


def test_the_curve_records_every_step(device: torch.device) -> None:
    training = Training(device=device)
    curve = lrfast.LossCurve(12, device, width=2)
    step = training.capture(curve=curve)
    assert len(curve) == 0 and torch.isnan(curve._losses).all()
    losses, rates = [], []
    for batch in make_batches(12, device):
        losses.append(step(batch).clone())
        rates.append(training.optimizer.last_rates.clone())
    assert torch.equal(curve.losses, torch.stack(losses).double())
    assert torch.equal(curve.lrs, torch.stack(rates))
    before = copied(training.memory())
    with pytest.raises(IndexError, match="its capacity is 12"):
        step(make_batches(1, device)[0])
    assert_same(training.memory(), before)


class Untold(lrfast.LossCurve):
    """A curve that is not asked for its length, which may synchronise."""

    def __len__(self) -> int:
        raise AssertionError("asked for its length")

    __bool__ = __len__


def test_no_launch_asks_for_the_curves_length(device: torch.device) -> None:
    training = Training(device=device, zeroing="before", scaler=True)
    curve = Untold(8, device)
    step = training.capture(curve=curve)
    for batch in make_batches(3, device):
        step(batch)
    assert lrfast.LossCurve.__len__(curve) == 3


def test_divergence_stops_the_updates(device: torch.device) -> None:
    training = Training(device=device)
    curve = lrfast.LossCurve(12, device, diverge_threshold=1.5)
    with training.capture(curve=curve) as step:
        batches = make_batches(6, device)
        step(batches[0])
        # It drives the optimizer for a while, and has a flag of its own.
        lrfast.lr_find(
            *(training.model, training.optimizer, batches, nn.functional.cross_entropy),
            num_iter=3,
            progress=False,
        )
        training.factor.fill_(1e6)
        step(batches[1])
        assert curve.status().outcome == "diverged"
        before = copied(training.memory())
        for batch in batches[2:]:
            step(batch)
        weights = {k: v for k, v in before.items() if "running" not in k and "num_b" not in k}
        after = training.memory()
        assert_same(weights, {name: after[name] for name in weights})
        assert step.captures == 1
    training.step(batches[0])
    assert training.optimizer._clock()[0] == before["clock"][0] + 1  # released, it goes on


def _overflow(training: Training) -> None:
    training.factor.fill_(torch.inf)


def _recover(training: Training) -> None:
    training.factor.fill_(1.0)


def test_a_scaler_skips_in_the_middle(device: torch.device) -> None:
    changes = {9: _overflow, 11: _recover, 17: _overflow, 18: _recover}
    _, captured, step = train_both(changes, device, zeroing="before", scaler=True)
    assert step.captures == 1
    assert captured.optimizer._clock() == (21, 21)


def test_skipped_steps_add_no_point(device: torch.device) -> None:
    training = Training(device=device, zeroing="before", scaler=True)
    curve = lrfast.LossCurve(8, device)
    step = training.capture(curve=curve)
    for index, batch in enumerate(make_batches(8, device)):
        training.factor.fill_(1e37 if index in (3, 6) else 1.0)  # finite until it is scaled
        step(batch)
    assert curve.status().outcome == "running"
    assert len(curve) == training.optimizer._clock()[0] == 6


# ---- no trace ------------------------------------------------------------------------------------


def _everything(training: Training) -> dict[str, Any]:
    grads = {f"grad {i}": p.grad for i, p in enumerate(training.model.parameters())}
    grads = {name: grad for name, grad in grads.items() if grad is not None}
    numbers = {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state(),
        "modes": [module.training for module in training.model.modules()],
        "rates": training.optimizer.last_rates.clone(),
    }
    if training.device.type == "cuda":
        numbers["cuda"] = torch.cuda.get_rng_state()
    return copied(training.memory() | grads | numbers)


def test_capturing_leaves_no_trace(device: torch.device) -> None:
    training = Training(device=device, zeroing="in place", scaler=True)
    counter = torch.zeros(2, device=device)
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(counter)], 0.1), 1)
    for batch in make_batches(3, device):
        training.step(batch)
    before = _everything(training)
    addresses = [p.data_ptr() for p in training.model.parameters()]

    def train_step(batch: Any) -> torch.Tensor:
        counter.add_(1)
        other._step_count += 1
        random.random()
        np.random.rand()
        return training.step(batch)

    example = make_batches(1, device)[0]
    lrfast.capture(
        *(train_step, training.optimizer, example),
        scaler=training.scaler,
        others=[counter, other],
    )
    assert_same(_everything(training), before)
    assert [p.data_ptr() for p in training.model.parameters()] == addresses
    assert counter.tolist() == [0.0, 0.0] and other._step_count == 1


def test_a_fresh_optimizer_stays_fresh(device: torch.device) -> None:
    training = Training(device=device, zeroing="before")
    training.capture()
    for state in training.optimizer.state_dict()["state"].values():
        for name, value in state.items():
            assert name in ("ema", "beta1_product") or not value.any(), name
    assert training.optimizer._clock() == (0, 0)
    grads = [param.grad for param in training.model.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_a_module_outside_the_optimizer(device: torch.device) -> None:
    """A frozen part with batch norm is found when it is called, and put back."""
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).to(device)
    head = nn.Linear(5, 3).to(device)
    optimizer = SGD(head.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in body.state_dict().items()}

    def train_step(batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(body(batch[0])), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    step = lrfast.capture(train_step, optimizer, make_batches(1, device)[0])
    assert_same(dict(body.state_dict()), before)
    assert all(param.grad is None for param in body.parameters())
    step(make_batches(1, device)[0])
    assert body[1].num_batches_tracked == 1


def test_casts_of_the_warm_up_are_forgotten(device: torch.device) -> None:
    """Within an autocast of the user's they would stand for weights that have changed since."""
    layer = nn.Linear(2, 1, bias=False).to(device)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.1, zero_grads=True)

    def train_step(batch: Any) -> torch.Tensor:
        loss = layer(batch).float().mean()
        loss.backward()
        optimizer.step()
        return loss

    with torch.autocast(device.type, torch.bfloat16):
        step = lrfast.capture(train_step, optimizer, torch.ones(1, 2))
        with torch.no_grad():
            layer.weight.fill_(2.0)
        assert step(torch.ones(1, 2)).item() == 4.0


@pytest.mark.parametrize("moment", [1, 3])
def test_a_step_that_fails_leaves_no_trace(moment: int, device: torch.device) -> None:
    training = Training(device=device)
    before = _everything(training)

    def train_step(batch: Any) -> torch.Tensor:
        loss = training.step(batch)
        if training.calls == moment:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        lrfast.capture(train_step, training.optimizer, make_batches(1, device)[0])
    assert_same(_everything(training), before)
    train_both({}, device, steps=3)


def test_gradients_that_a_step_adds_to_and_drops_are_refused(device: torch.device) -> None:
    layer = nn.Linear(3, 1).to(device)
    optimizer = SGD(layer.parameters(), lr=0.1)

    def train_step(batch: torch.Tensor) -> torch.Tensor:
        loss = layer(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    batch = torch.ones(4, 3, device=device)
    layer(batch).sum().backward()
    before = copied({name: p.grad for name, p in layer.named_parameters()})
    with pytest.raises(ValueError, match="must find no gradients if it adds to them"):
        lrfast.capture(train_step, optimizer, batch)
    assert_same({name: p.grad for name, p in layer.named_parameters()}, before)
    optimizer.zero_grad()
    lrfast.capture(train_step, optimizer, batch)(batch)


# ---- batches, release ----------------------------------------------------------------------------


def test_batches_of_all_containers(device: torch.device) -> None:
    layer = nn.Linear(2, 1).to(device)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.1, zero_grads=True)
    seen = []

    def train_step(batch: Any) -> torch.Tensor:
        seen.append((batch["x"][0].data_ptr(), batch["name"], type(batch)))
        loss = (layer(batch["x"][0]) - batch["more"]["y"]).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    def make(value: float) -> dict[str, Any]:
        return {"x": [torch.full((3, 2), value)], "more": {"y": torch.ones(3, 1)}, "name": "a"}

    step = lrfast.capture(train_step, optimizer, make(1.0))
    with torch.no_grad():
        layer.weight.fill_(0.5), layer.bias.fill_(0.0)
    assert float(step(make(2.0))) == 1.0  # (0.5 * 2 * 2 - 1)^2
    assert len(set(seen)) == 1


def test_release(device: torch.device) -> None:
    training = Training(device=device)
    with training.capture() as step:
        step(make_batches(1, device)[0])
    before = copied(training.memory())
    with pytest.raises(RuntimeError, match=r"was released; call lrfast\.capture again"):
        step(make_batches(1, device)[0])
    step.release()
    assert_same(training.memory(), before)
    training.step(make_batches(1, device)[0])
    assert training.optimizer._clock()[0] == 2


@pytest.mark.gpu
def test_replays_wait_for_nothing_and_move_to_other_streams() -> None:
    batches = [tuple(t.pin_memory() for t in batch) for batch in make_batches(20)]
    eager, captured = Training(device="cuda"), Training(device="cuda")
    torch.manual_seed(5)
    for batch in batches:
        _rates(eager)
        eager.step(tuple(t.cuda() for t in batch))
    torch.manual_seed(5)
    step = captured.capture()
    streams = [torch.cuda.Stream(), torch.cuda.current_stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index, batch in enumerate(batches):
            stream = streams[index % 3]
            stream.wait_stream(streams[(index - 1) % 3])
            with torch.cuda.stream(stream):
                _rates(captured)
                step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert step.captures == 1
    assert_same(captured.memory(), eager.memory())


@pytest.mark.gpu
def test_a_graph_of_the_users_own() -> None:
    """torch.cuda.graph alone: what is up to date is captured, the rest is refused."""
    training = Training(device="cuda", zeroing="in place")
    batch = make_batches(1, "cuda")[0]
    with (
        pytest.raises(RuntimeError, match=r"use lrfast\.capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        training.step(batch)
    twin = Training(device="cuda", zeroing="in place")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            twin.step(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twin.step(batch)
    for _ in range(4):
        graph.replay()
    assert twin.optimizer._clock()[0] == 7
