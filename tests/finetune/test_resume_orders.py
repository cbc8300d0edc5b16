"""A run that goes on from a checkpoint, put together in any order, is the one never interrupted.

torch's schedulers are right in one order of three: in others the next rate, or every later one, is
wrong (a tenth of it for LinearLR). Here the schedule is part of the optimizer's state, and one that
differs from it is an explicit choice.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from checkpoints import assert_identical, params_of, saved, train
from torch import Tensor

import lrfast
from lrfast import schedules
from lrfast.schedules import Schedule

END = 20  # four steps behind the schedules' last one
CYCLE = (
    schedules.one_cycle(8, 0.4, momentum=(0.95, 0.8))
    .repeat(2)
    .with_weight_decay(schedules.linear(1.0, 3.0, 16))
)
OTHER = schedules.cosine(9, 0.1).then(schedules.one_cycle(7, momentum=(0.9, 0.7)))
PER_GROUP = [CYCLE, OTHER, None]
RULES = {
    "adamw": (lrfast.AdamW, torch.optim.AdamW, {"betas": (0.85, 0.97), "weight_decay": 0.1}),
    "sgd": (lrfast.SGD, torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.05}),
}
Make = Callable[["Setting", list[Tensor], dict[str, Any], int], Any]


@dataclass
class Setting:
    """A rule and the gradients of the whole run; what it left at every step."""

    rule: str
    grads: list[list[Tensor]]
    states: list[dict[str, Any]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)

    def ours(self, params: list[Tensor], **options: Any) -> Any:
        cls, _, given = RULES[self.rule]
        return cls(groups(params), **given, **options)

    def torchs(self, params: list[Tensor]) -> Any:
        _, cls, given = RULES[self.rule]
        return cls(groups(params), **given)


def groups(params: list[Tensor]) -> list[dict[str, Any]]:
    rates = (0.1, 0.03, 0.2)
    return [{"params": [p], "lr": rate} for p, rate in zip(params, rates, strict=False)]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 40, 7)]


def whole_run(rule: str, act: Callable[[Any, int], None] | None = None) -> tuple[Setting, Any]:
    """The uninterrupted run; act(optimizer, step) may do something before a step."""
    params = start()
    generator = torch.Generator().manual_seed(4)
    grads = [[torch.randn(p.shape, generator=generator) for p in params] for _ in range(END)]
    setting = Setting(rule, grads)
    optimizer = setting.ours(params, schedule=PER_GROUP)
    for step in range(END):
        if act is not None:
            act(optimizer, step)
        setting.states.append(saved(optimizer.state_dict()))
        setting.weights.append([p.detach().clone() for p in params])
        train(optimizer, [grads[step]])
    return setting, optimizer


def loaded(optimizer: Any, state: dict[str, Any]) -> Any:
    optimizer.load_state_dict(state)
    return optimizer


def set_after(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    optimizer = loaded(s.ours(params), state)
    optimizer.set_schedule(PER_GROUP)
    return optimizer


def set_before(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    optimizer = s.ours(params)
    optimizer.set_schedule(PER_GROUP)
    return loaded(optimizer, state)


def set_at_its_step(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    optimizer = loaded(s.ours(params, schedule=schedules.constant(0.5)), state | {"lrfast": {}})
    optimizer.set_schedule(PER_GROUP, step=at)
    return optimizer


def loaded_then_wrapped(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    """torch's optimizer drops our entry, so the step must be said."""
    optimizer = lrfast.wrap(loaded(s.torchs(params), state))
    optimizer.set_schedule(PER_GROUP, step=state["lrfast"]["schedule_step"])
    return optimizer


def group_added_first(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    optimizer = s.ours(params[:2], schedule=PER_GROUP[:2])
    optimizer.add_param_group(groups(params)[2])
    return loaded(optimizer, state)


def after_a_range_test(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    """It leaves no trace, so the schedule is still the one just loaded."""
    optimizer = loaded(s.ours(params), state)
    model = torch.nn.ParameterList(params)
    loss = lambda model, batch: sum((p * p).sum() for p in model)  # noqa: E731
    lrfast.lr_find(model, optimizer, [0] * 9, compute_loss=loss, num_iter=8, progress=False)
    optimizer.set_schedule(PER_GROUP)
    return optimizer


def loaded_twice(s: Setting, params: list[Tensor], state: dict[str, Any], at: int) -> Any:
    return loaded(loaded(s.ours(params), copy.deepcopy(s.states[min(at + 3, END - 1)])), state)


ORDERS: dict[str, Make] = {
    "never set": lambda s, params, state, at: loaded(s.ours(params), state),
    "in the constructor": lambda s, params, state, at: loaded(
        s.ours(params, schedule=PER_GROUP), state
    ),
    "set before": set_before,
    "set after": set_after,
    "set at its step": set_at_its_step,
    "wrapped, loaded": lambda s, params, state, at: loaded(lrfast.wrap(s.torchs(params)), state),
    "wrapped with it, loaded": lambda s, params, state, at: loaded(
        lrfast.wrap(s.torchs(params), PER_GROUP), state
    ),
    "loaded, wrapped": loaded_then_wrapped,
    "group added, loaded": group_added_first,
    "loaded, copied": lambda s, params, state, at: loaded(s.ours(params), state),
    "range test": after_a_range_test,
    "loaded twice": loaded_twice,
}


@pytest.fixture(scope="module", params=RULES)
def run(request: pytest.FixtureRequest) -> tuple[Setting, Any]:
    return whole_run(request.param)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_at_every_step(run: tuple[Setting, Any], order: str) -> None:
    """From step 0 to three steps behind the last one, to the bit."""
    setting, whole = run
    for at in range(END):
        params = [torch.nn.Parameter(p.clone()) for p in setting.weights[at]]
        # Loading shares tensors with the dict, as torch does.
        resumed = ORDERS[order](setting, params, copy.deepcopy(setting.states[at]), at)
        if order == "loaded, copied":
            resumed = pickle.loads(pickle.dumps(copy.deepcopy(resumed)))
            resumed.set_schedule(PER_GROUP)
        assert resumed.schedule_step == at
        train(resumed, setting.grads[at:])
        assert torch.equal(whole.last_rates, resumed.last_rates)
        if order == "loaded, wrapped" and setting.rule == "adamw":
            # torch's optimizer rounds the product of the momenta to the parameter's type.
            torch.testing.assert_close(params, params_of(whole), rtol=1e-5, atol=1e-6)
        else:
            assert_identical(whole, resumed)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("early", [False, True], ids=["frozen after", "frozen before"])
def test_freezing_on_both_sides_of_a_resume(rule: str, early: bool) -> None:
    """Group 0 rests from step 3 to step 10, a timetable that either side may be the first to do."""

    def act(optimizer: Any, step: int) -> None:
        if step in (3, 10):
            optimizer.param_groups[0]["frozen"] = step == 3

    setting, whole = whole_run(rule, act)
    for at in range(END):
        params = [torch.nn.Parameter(p.clone()) for p in setting.weights[at]]
        resumed = setting.ours(params, schedule=PER_GROUP)
        if early:
            resumed.param_groups[0]["frozen"] = at % 2 == 0  # whatever: the checkpoint knows
        resumed.load_state_dict(setting.states[at])
        if not early:
            resumed.param_groups[0]["frozen"] = 3 <= at < 10
        for step in range(at, END):
            act(resumed, step)
            train(resumed, [setting.grads[step]])
        assert_identical(whole, resumed)


@pytest.mark.parametrize("rule", RULES)
def test_a_group_added_on_both_sides_of_a_resume(rule: str) -> None:
    """The third group joins at step 6, without a schedule."""
    setting, _ = whole_run(rule)

    def go(optimizer: Any, params: list[Tensor], begin: int, end: int) -> None:
        for step in range(begin, end):
            if step == 6 and len(optimizer.param_groups) == 2:
                optimizer.add_param_group(groups(params)[2])
            count = len(optimizer.param_groups)
            train(optimizer, [setting.grads[step][:count]])

    params = start()
    whole = setting.ours(params[:2], schedule=PER_GROUP[:2])
    for at in range(0, END, 3):
        go(whole, params, at - 3 if at else 0, at)
        state = saved(whole.state_dict())
        copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
        count = len(whole.param_groups)
        resumed = loaded(setting.ours(copies[:count]), state)
        one, other = copy.deepcopy(whole), resumed
        go(one, [*params_of(one), torch.nn.Parameter(params[2].detach().clone())], at, END)
        go(other, copies, at, END)
        assert_identical(one, other)


def make_pair() -> tuple[Any, dict[str, Any]]:
    """An optimizer with one schedule, the checkpoint of another at its step 4."""
    source = lrfast.SGD(groups(start()), schedule=CYCLE)
    train(source, [[torch.ones_like(p) for p in params_of(source)]] * 4)
    optimizer = lrfast.SGD(groups(start()), schedule=[CYCLE, schedules.cosine(30), CYCLE])
    return optimizer, saved(source.state_dict())


def test_another_schedule_is_refused_and_nothing_has_changed() -> None:
    optimizer, state = make_pair()
    before = copy.deepcopy(optimizer)
    with pytest.raises(
        ValueError,
        match=r'schedule must be "saved" or "own" where the .* got None;'
        r" saved against own: group 1: name: .* against cosine",
    ):
        optimizer.load_state_dict(state)
    assert_identical(optimizer, before)
    assert optimizer.schedules == before.schedules and optimizer.schedule_step == 0


LENGTHS: dict[str, tuple[Schedule, Schedule]] = {
    "longer": (schedules.cosine(10), schedules.cosine(16)),
    "shorter": (schedules.one_cycle(20), schedules.one_cycle(12)),
    "extended": (CYCLE, CYCLE.extend_to(26, 4)),
    "epochs": tuple(  # type: ignore[dict-item]
        schedules.per_epoch(schedules.step(1, 0.5), steps).lasting(3 * steps) for steps in (4, 7)
    ),
    "product": (schedules.warmup(3) * schedules.linear(1.0, 0.1, 8), None),  # type: ignore[dict-item]
}
LENGTHS["product"] = (LENGTHS["product"][0], schedules.warmup(3) * schedules.linear(1.0, 0.1, 9))


@pytest.mark.parametrize("kind", LENGTHS)
def test_another_length_goes_on_at_the_saved_step(kind: str) -> None:
    """With the length of the new plan, and a warning that says so."""
    short, longer = LENGTHS[kind]
    source = lrfast.SGD(groups(start()), schedule=short)
    ones = [[torch.ones_like(p) for p in params_of(source)]]
    train(source, ones * 4)
    optimizer = lrfast.SGD(groups(start()), schedule=[longer, short, longer])
    with pytest.warns(UserWarning, match="attached schedule goes on .* against own: group 0, 2"):
        optimizer.load_state_dict(saved(source.state_dict()))
    assert optimizer.schedules == [longer, short, longer] and optimizer.schedule_step == 4
    train(optimizer, ones)
    wanted = [0.1 * longer.at(4), 0.03 * short.at(4), 0.2 * longer.at(4)]
    assert optimizer.last_rates.tolist() == wanted
    optimizer.load_state_dict(saved(source.state_dict()), schedule="saved")
    assert optimizer.schedules == [short] * 3 and optimizer.schedule_step == 4


@pytest.mark.parametrize("choice", ["saved", "own"])
def test_another_schedule_is_a_choice(choice: Any) -> None:
    """Either goes on where the saved one stood."""
    optimizer, state = make_pair()
    own = optimizer.schedules
    optimizer.load_state_dict(state, schedule=choice)
    assert optimizer.schedules == ([CYCLE] * 3 if choice == "saved" else own)
    assert optimizer.schedule_step == 4
    wanted = [
        rate * schedule.at(4)
        for rate, schedule in zip((0.1, 0.03, 0.2), optimizer.schedules, strict=True)
    ]
    train(optimizer, [[torch.ones_like(p) for p in params_of(optimizer)]])
    assert optimizer.last_rates.tolist() == wanted


def test_a_word_that_is_no_choice() -> None:
    optimizer, state = make_pair()
    with pytest.raises(ValueError, match="schedule must be 'saved' or 'own', got 'mine'"):
        optimizer.load_state_dict(state, schedule="mine")


def test_another_schedule_set_right_after_loading_must_say_where_it_begins() -> None:
    optimizer, state = make_pair()
    optimizer.load_state_dict(state, schedule="saved")
    other = schedules.cosine(30)
    with pytest.raises(
        ValueError, match=r"step must say .* \(0 to start it, 4 to go on .* group 0"
    ):
        optimizer.set_schedule(other)
    assert optimizer.schedules == [CYCLE] * 3 and optimizer.schedule_step == 4
    for step in (0, 4):
        twin = copy.deepcopy(optimizer)
        twin.set_schedule(other, step=step)
        assert twin.get_last_lr()[0] == 0.1 * other.at(step)
    with pytest.raises(ValueError, match="step must be a whole number, 0 or more, got -1"):
        optimizer.set_schedule(other, step=-1)
    # Once it has made a step, a schedule that is set begins, the same one too.
    train(optimizer, [[torch.ones_like(p) for p in params_of(optimizer)]])
    optimizer.set_schedule(CYCLE)
    assert optimizer.schedule_step == 0


def test_a_checkpoint_without_a_schedule_says_nothing_of_ours() -> None:
    optimizer, state = make_pair()
    del state["lrfast"]
    optimizer.load_state_dict(state)
    optimizer.set_schedule(OTHER)
    assert optimizer.schedules == [OTHER] * 3 and optimizer.schedule_step == 0


@pytest.mark.parametrize("schedule", [CYCLE, OTHER], ids=["cycles", "other"])
@pytest.mark.parametrize("at", [0, 5, 11, 15])
def test_an_extended_schedule_goes_on_from_where_the_short_one_stood(
    schedule: Schedule, at: int
) -> None:
    """The same rate at the step where they part, the same last one, ten steps later."""
    setting = Setting("sgd", [])
    source = setting.ours(start(), schedule=schedule)
    ones = [torch.ones_like(p) for p in params_of(source)]
    train(source, [ones] * at)
    longer = schedule.extend_to(26, at)
    optimizer = setting.ours(start(), schedule=longer)
    optimizer.load_state_dict(saved(source.state_dict()), schedule="own")
    assert optimizer.get_last_lr() == pytest.approx(source.get_last_lr(), rel=1e-12)
    for step in range(at, 30):
        train(optimizer, [ones])
        assert optimizer.last_rates.tolist() == [
            group["lr"] * longer.at(step) for group in optimizer.param_groups
        ]
    assert longer.at(25) == pytest.approx(schedule.at(15), rel=1e-12)
