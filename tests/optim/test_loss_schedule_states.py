"""Plateau and Greedy in checkpoints, copies, pickles, snapshots and on top of other schedules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import bits

import lrfast
from lrfast import schedules
from lrfast.loss_schedules import LossSchedule
from lrfast.snapshot import Snapshot

Maker = Callable[[Any], LossSchedule]

MAKERS: dict[str, Maker] = {
    "plateau": lambda o: lrfast.Plateau(o, factor=0.5, patience=1, cooldown=1, window=2),
    "keras": lambda o: lrfast.Plateau(o, factor=0.3, patience=1, counting="keras"),
    "greedy": lambda o: lrfast.Greedy(
        o, factor=0.5, patience=0, warmup=1, cooldown=1, min_factor=0.3, reset_start=2, window=2
    ),
}
# Falls, stays, falls and rises: every entry of the state moves.
VALUES = [4.0, 2.0, 1.0, 1.0, 1.5, 2.0, 2.0, 2.0, 0.5, 0.25, 0.5, 3.0, 3.0, 3.0, 3.0, 3.0]


def make_optimizer(kind: str = "adamw", device: str = "cpu") -> Any:
    """Two groups, each with a schedule of its own."""
    torch.manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(n, device=device)) for n in (3, 2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    each = [schedules.cosine(20), schedules.linear(0.2, 1.0, 20)]
    if kind == "wrapped":
        return lrfast.wrap(torch.optim.AdamW(groups, lr=0.1), schedule=each)
    return lrfast.AdamW(groups, lr=0.1, weight_decay=0.1, schedule=each)


def train(optimizer: Any, values: list[float]) -> list[list[float]]:
    """Step with gradients that depend on the weights; return the rates used."""
    used = []
    for value in values:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = param.detach() + 0.5
        optimizer.step()
        used.append(optimizer.last_rates.tolist())
        optimizer.loss_schedule.observe(value)
    return used


def saved(optimizer: Any) -> Any:
    """Its state dict after a way through a file that trusts nothing."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def left(optimizer: Any) -> Any:
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return bits(params), bits(optimizer.state_dict())


def load_before(optimizer: Any, state: Any, make: Maker) -> None:
    optimizer.load_state_dict(state)
    make(optimizer)


def load_after(optimizer: Any, state: Any, make: Maker) -> None:
    make(optimizer)
    optimizer.load_state_dict(state)


def load_alone(optimizer: Any, state: Any, make: Maker) -> None:
    optimizer.load_state_dict(state)


def load_over_another_past(optimizer: Any, state: Any, make: Maker) -> None:
    make(optimizer)
    train(optimizer, VALUES[3:9])
    optimizer.load_state_dict(state)


ORDERS = [load_before, load_after, load_alone, load_over_another_past]


@pytest.mark.parametrize("kind", ["adamw", "wrapped"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_resumes_in_any_order(make: Maker, order: Any, kind: str) -> None:
    whole = make_optimizer(kind)
    make(whole)
    used = train(whole, VALUES)
    assert len({rate for rates in used for rate in rates}) > len(VALUES)
    half = make_optimizer(kind)
    make(half)
    for at, value in enumerate(VALUES[:-1]):
        train(half, [value])
        if at not in (0, 3, 6, 11):
            continue
        other = make_optimizer(kind)
        order(other, saved(half), make)
        with torch.no_grad():
            for mine, theirs in zip(weights(other), weights(half), strict=True):
                mine.copy_(theirs)
        assert left(other) == left(half)
        assert other.get_last_lr() == half.get_last_lr()
        assert train(other, VALUES[at + 1 :]) == used[at + 1 :]
        assert left(other) == left(whole)


def weights(optimizer: Any) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_copies_keep_it(make: Maker, copied: Callable[[Any], Any]) -> None:
    one = make_optimizer()
    make(one)
    train(one, VALUES[:7])
    other = copied(one)
    assert type(other.loss_schedule) is type(one.loss_schedule) and left(other) == left(one)
    assert other.loss_schedule is not one.loss_schedule
    before = left(one)
    made = make(other)  # takes over, as after a load
    assert other.loss_schedule is made
    used = train(other, VALUES[7:])
    assert left(one) == before  # nothing is shared
    assert train(one, VALUES[7:]) == used and left(other) == left(one)
    with pytest.raises(ValueError, match="at most"):
        make(other)


def test_the_one_that_takes_over_stays_where_the_loaded_one_was() -> None:
    """In the same memory, which captured graphs may know; the loaded one has no say any more."""
    one, other = make_optimizer(), make_optimizer()
    MAKERS["greedy"](one)
    other.load_state_dict(saved(one))
    loaded, address = other.loss_schedule, other._loss_factor.data_ptr()
    made = MAKERS["greedy"](other)
    assert other._loss_factor.data_ptr() == address
    loaded.detach()
    assert other.loss_schedule is made
    made.detach()
    assert other.loss_schedule is None and other.get_last_lr() == [0.1, 0.02 * 0.2]


def test_a_copy_of_the_schedule_drives_a_copy_of_the_optimizer() -> None:
    optimizer = make_optimizer()
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    other = copy.deepcopy(plateau)
    other.observe(1.0)
    other.observe(1.0)
    assert (float(other.scale), float(plateau.scale)) == (0.5, 1.0)
    assert other._optimizer is not optimizer and other._optimizer.loss_schedule is other
    assert other._optimizer.get_last_lr() == [rate / 2 for rate in optimizer.get_last_lr()]


def test_state_dicts_without_it_leave_it() -> None:
    optimizer = make_optimizer()
    plain = saved(optimizer)
    assert "loss_schedule" not in plain["lrfast"]
    plateau = MAKERS["plateau"](optimizer)
    train(optimizer, VALUES[:7])
    before = bits(plateau.state_dict())
    for state in (plain, torch.optim.AdamW(optimizer.param_groups, lr=1.0).state_dict()):
        optimizer.load_state_dict(state)
        assert bits(plateau.state_dict()) == before and optimizer.loss_schedule is plateau


def test_a_state_dict_is_a_copy() -> None:
    optimizer = make_optimizer()
    MAKERS["greedy"](optimizer)
    state = optimizer.state_dict()
    before = bits(state["lrfast"]["loss_schedule"])
    train(optimizer, VALUES)
    assert bits(state["lrfast"]["loss_schedule"]) == before


def test_a_state_of_its_own_as_older_versions_wrote_it() -> None:
    plateau = lrfast.Plateau(make_optimizer(), factor=0.5, patience=1)
    old = {"best": 0.25, "bad": 1.0, "cooldown": 0.0, "scale": 0.5, "cuts": 1.0}
    plateau.load_state_dict({name: torch.tensor(value) for name, value in old.items()})
    plateau.observe(1.0)
    assert (float(plateau.scale), plateau.cuts) == (0.25, 2)


# State of another kind.

OTHERS: list[tuple[Maker, Maker, str, str]] = [
    (MAKERS["plateau"], MAKERS["greedy"], "Plateau", "Greedy"),
    (MAKERS["greedy"], MAKERS["plateau"], "Greedy", "Plateau"),
    (
        lambda o: lrfast.Plateau(o, factor=0.5),
        lambda o: lrfast.Plateau(o, factor=0.2, window=3),
        r"Plateau\(factor=0\.5, window=1\)",
        r"Plateau\(factor=0\.2, window=3\)",
    ),
    (
        lambda o: lrfast.Plateau(o),
        lambda o: lrfast.Plateau(o, counting="keras"),
        r"Plateau\(counting='torch'\)",
        r"Plateau\(counting='keras'\)",
    ),
    (
        lambda o: lrfast.Greedy(o, max_factor=2.0),
        lambda o: lrfast.Greedy(o, max_factor=5.0, reset_start=7),
        r"Greedy\(max_factor=2\.0, reset_start=500\)",
        r"Greedy\(max_factor=5\.0, reset_start=7\)",
    ),
]


@pytest.mark.parametrize(("own", "other", "own_name", "other_name"), OTHERS)
def test_refuses_the_state_of_another(
    own: Maker, other: Maker, own_name: str, other_name: str
) -> None:
    giver = make_optimizer()
    other(giver)
    train(giver, VALUES)
    state = saved(giver)
    taker = make_optimizer()
    made = own(taker)
    train(taker, VALUES[:5])
    before = left(taker)
    message = f"^state_dict must be of a {own_name}, got one of a {other_name}; detach"
    with pytest.raises(ValueError, match=message):
        taker.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(giver.loss_schedule.state_dict())
    assert left(taker) == before
    # Made too late, and otherwise than what was loaded.
    late = make_optimizer()
    late.load_state_dict(state)
    before = left(late)
    message = f"^optimizer must go on with the {other_name} that it has loaded, got a {own_name}; "
    with pytest.raises(ValueError, match=message):
        own(late)
    assert left(late) == before
    # The ways out.
    made.detach()
    taker.load_state_dict(state)
    assert bits(taker.loss_schedule.state_dict()) == bits(giver.loss_schedule.state_dict())
    late.loss_schedule.detach()
    assert float(own(late).scale) == 1.0


@pytest.mark.parametrize("is_attached", [False, True])
def test_refuses_what_is_no_loss_schedule(is_attached: bool) -> None:
    optimizer = make_optimizer()
    state = saved(optimizer)
    state["lrfast"]["loss_schedule"] = {"kind": "Cosine"}
    if is_attached:
        MAKERS["plateau"](optimizer)
    before = left(optimizer)
    with pytest.raises(ValueError, match="of kind Plateau or Greedy, got 'Cosine'"):
        optimizer.load_state_dict(state)
    assert left(optimizer) == before


# Range tests and snapshots.


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_range_test_leaves_no_trace(make: Maker) -> None:
    """Not even one whose own step observes, and it plans its rates without the factor."""
    layer = torch.nn.Linear(3, 2)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.4, momentum=0.9)
    schedule = make(optimizer)
    for value in VALUES[:6]:
        schedule.observe(value)
    assert float(schedule.scale) != 1.0
    before = bits(optimizer.state_dict())

    def step(batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = layer(batch).square().mean()
        loss.backward()
        optimizer.step()
        schedule.observe(loss.detach())
        return loss

    data = [torch.ones(4, 3)] * 12
    result = lrfast.lr_find(
        layer, optimizer, data, step_fn=step, num_iter=12, diverge_threshold=None, progress=False
    )
    assert result.lrs[0] == pytest.approx(1e-7) and result.lrs[-1] == pytest.approx(10)
    assert bits(optimizer.state_dict()) == before and optimizer.loss_schedule is schedule
    assert optimizer.get_last_lr() == [0.4 * float(schedule.scale)]
    step(data[0])
    assert optimizer.last_rates.tolist() != [0.4]


def test_a_snapshot_brings_it_back_and_drops_a_later_one() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.4)
    without = Snapshot(layer, optimizer)
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    plateau.observe(1.0)
    snapshot = Snapshot(layer, optimizer)
    plateau.observe(1.0)
    assert optimizer.get_last_lr() == [0.2]
    snapshot.restore()
    assert optimizer.get_last_lr() == [0.4] and optimizer.loss_schedule is plateau
    plateau.observe(1.0)
    assert optimizer.get_last_lr() == [0.2]
    without.restore()
    assert optimizer.get_last_lr() == [0.4] and optimizer.loss_schedule is None


# Groups, devices, what else the step does.


def test_every_group_on_top_of_its_own_schedule() -> None:
    optimizer = make_optimizer()
    schedule = MAKERS["plateau"](optimizer)
    used = train(optimizer, VALUES)
    factors = []
    again = MAKERS["plateau"](make_optimizer())
    for value in VALUES:
        factors.append(float(again.scale))
        again.observe(value)
    for step, (rates, factor) in enumerate(zip(used, factors, strict=True)):
        own = [0.1 * schedules.cosine(20).at(step), 0.02 * schedules.linear(0.2, 1.0, 20).at(step)]
        assert rates == [rate * factor for rate in own]
    assert schedule.cuts >= 2 and optimizer.param_groups[1]["lr"] == 0.02


def test_groups_added_and_unfrozen_later() -> None:
    optimizer = make_optimizer()
    lrfast.freeze(optimizer)
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    train(optimizer, [1.0, 1.0])
    lrfast.unfreeze(optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.8})
    assert train(optimizer, [1.0])[0][2] == 0.4
    assert plateau.cuts == 2


def test_a_skipped_step_counts_no_observation() -> None:
    """The loss schedule counts what it is shown; the time-based one counts applied steps."""
    optimizer = make_optimizer()
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    train(optimizer, [1.0, 1.0])
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    train(optimizer, [1.0])
    del optimizer.grad_scale, optimizer.found_inf
    assert (optimizer.schedule_step, plateau.cuts) == (2, 2)
    assert train(optimizer, [1.0])[0][0] == 0.1 * schedules.cosine(20).at(2) * 0.25


def test_parameters_on_another_device(device: torch.device) -> None:
    """One optimizer over two devices, the state with its first parameter."""
    params = [torch.nn.Parameter(torch.ones(2, device=d)) for d in (device, "cpu")]
    optimizer = lrfast.SGD(params, lr=0.5)
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    assert plateau.scale.device == params[0].device
    for _ in range(2):
        plateau.observe(torch.ones(()))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert [param.tolist() for param in params] == [[0.75, 0.75]] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_never_waits_for_the_gpu(make: Maker) -> None:
    optimizer, host = make_optimizer(device="cuda"), make_optimizer()
    schedule, counted = make(optimizer), make(host)
    losses = torch.tensor(VALUES, device="cuda")
    schedule.observe(1.0)
    schedule.reset()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for value, loss in zip(VALUES, losses, strict=True):
            schedule.observe(loss)
            counted.observe(value)
            schedule.observe(value)
            counted.observe(value)
        state = schedule.state_dict()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bits({n: v.cpu() for n, v in state.items() if isinstance(v, torch.Tensor)}) == bits(
        {n: v for n, v in counted.state_dict().items() if isinstance(v, torch.Tensor)}
    )
