"""A range test leaves no trace, bit for bit, however it ends; and its loop waits for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from device_reads import NoDeviceReads
from sweep_setups import Setup, build
from tiny import (
    OPTIMIZERS,
    OURS,
    bits,
    cross_entropy,
    make_batches,
    make_model,
    make_scripted,
)
from torch import Tensor, nn

import lrfast
from lrfast import LossCurve, RangeTest, lr_find, schedules
from lrfast.curve import CurveStatus
from lrfast.range_test import _lr_find


class Boom(Exception):
    """What the loss function of a sweep raises."""


def sweep(setup: Setup, ending: str = "completes", num_iter: int = 12) -> RangeTest | None:
    """A range test over 12 rates that ends in this way, in its seventh step if not earlier."""
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls < 7 or ending == "completes":
            return cross_entropy(outputs, targets)
        if ending == "raises":
            raise Boom
        if ending == "is interrupted":
            raise KeyboardInterrupt
        factor = math.nan if ending == "turns NaN" else 1e4
        return cross_entropy(outputs, targets) * factor

    raised = {"raises": Boom, "is interrupted": KeyboardInterrupt}.get(ending)
    options = {"num_iter": num_iter, "diverge_threshold": 50.0, "progress": False}
    result = None
    with nullcontext() if raised is None else pytest.raises(raised):
        result = lr_find(setup.model, setup.optimizer, setup.loader, loss_fn, **options)
    wanted = {"completes": "completed", "diverges": "diverged", "turns NaN": "non-finite"}
    assert (result.outcome if result else None) == wanted.get(ending)
    if ending in ("diverges", "turns NaN"):
        assert result is not None and len(result.lrs) == 7
    return result


ENDINGS = ("completes", "diverges", "turns NaN", "raises", "is interrupted")


def check(build: Callable[[], Setup], before: int, ending: str) -> None:
    plain = build()
    losses = plain.train(before) + plain.train(20)

    swept = build()
    swept_losses = swept.train(before)
    untouched = swept.trace()
    sweep(swept, ending)
    assert swept.trace() == untouched
    swept_losses += swept.train(20)
    assert bits(swept_losses) == bits(losses)
    assert swept.trace() == plain.trace()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_sweep_then_train_is_train(kind: str, before: int, ending: str) -> None:
    check(lambda: build(kind), before, ending)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", OURS)
def test_an_attached_schedule_goes_on_where_it_was(kind: str, ending: str) -> None:
    check(lambda: build(kind, "ours"), 7, ending)
    check(lambda: build(kind, "ours"), 0, ending)
    setup = build(kind, "ours")
    setup.train(7)
    optimizer: Any = setup.optimizer
    sweep(setup, ending)
    assert optimizer.schedule_step == 7
    expected = np.array([0.01, 0.02, 0.05]) * schedules.one_cycle(40).at(7)
    assert optimizer.get_last_lr() == expected.tolist()
    setup.train(1)
    assert optimizer.last_rates.tolist() == expected.tolist()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_attached_scheduler_of_torch_goes_on_where_it_was(kind: str, ending: str) -> None:
    check(lambda: build(kind, "torch"), 7, ending)


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_the_order_of_a_loader_that_shuffles_by_the_global_generator(
    kind: str, before: int
) -> None:
    check(lambda: build(kind, own_generator=False), before, "completes")
    check(lambda: build(kind, own_generator=False), before, "raises")


@pytest.mark.parametrize("kind", OURS)
def test_an_optimizer_loaded_from_a_checkpoint(kind: str) -> None:
    def resumed() -> Setup:
        first = build(kind, "ours")
        first.train(5)
        setup = build(kind)
        setup.model.load_state_dict(first.model.state_dict())
        setup.optimizer.load_state_dict(first.optimizer.state_dict())
        return setup

    check(resumed, 0, "completes")
    setup = resumed()
    sweep(setup)
    assert setup.optimizer.schedule_step == 5


@pytest.mark.parametrize("kind", OURS)
def test_a_frozen_body(kind: str) -> None:
    def frozen() -> Setup:
        setup = build(kind)
        setup.train(3)
        lrfast.freeze(setup.optimizer)
        return setup

    check(frozen, 2, "completes")
    check(frozen, 0, "raises")


def test_without_the_snapshot_there_would_be_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = build("sgd")
    setup.train(2)
    untouched = setup.trace()
    nothing = SimpleNamespace(nbytes=0, notes=())
    monkeypatch.setattr(_lr_find, "preserved", lambda *args, **options: nullcontext(nothing))
    sweep(setup)
    found = setup.trace()
    changed = {name for name in untouched if found[name] != untouched[name]}
    assert changed >= {"parameters", "buffers", "optimizer", "torch", "order", "python", "numpy"}


def test_modes_in_the_sweep_and_after() -> None:
    """In eval mode the whole model is put into training mode; in training mode nothing is."""
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), 0.1)
    seen: list[list[bool]] = []

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append([module.training for module in model.modules()])
        return cross_entropy(model(batch[0]), batch[1])

    options: Any = {"compute_loss": compute_loss, "num_iter": 3, "progress": False}
    for start in (lambda: model.eval(), lambda: model.train(), lambda: model[1].eval()):
        start()
        before = [module.training for module in model.modules()]
        seen.clear()
        lr_find(model, optimizer, make_batches(3), **options)
        assert [module.training for module in model.modules()] == before
        assert seen == [before if before[0] else [True] * len(before)] * 3


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_twice_gives_the_same(kind: str) -> None:
    setup = build(kind)
    setup.train(3)
    first, second = sweep(setup), sweep(setup)
    assert first is not None and second is not None
    for field in fields(RangeTest):
        if field.name != "seconds":
            one, other = getattr(first, field.name), getattr(second, field.name)
            assert bits(one) == bits(other), field.name


def test_the_rates_of_the_last_step_are_not_the_sweeps() -> None:
    setup = build("sgd")
    setup.train(3)
    optimizer: Any = setup.optimizer
    before = optimizer.last_rates.tolist()
    sweep(setup)
    assert optimizer.last_rates.tolist() == before


# The loop waits for nothing.


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("kind", [*OURS, "torch-sgd"])
def test_no_device_reads(kind: str, before: int, progress: bool, terminal: Any) -> None:
    setup = build(kind)
    setup.train(before)
    batches = make_batches(4)
    model, optimizer = setup.model, setup.optimizer
    with NoDeviceReads():
        result = lr_find(
            model,
            optimizer,
            batches,
            cross_entropy,
            num_iter=30,
            diverge_threshold=1e9,
            progress=progress,
        )
        stopped = lr_find(model, optimizer, batches, cross_entropy, end_lr=1e4, progress=progress)
    assert len(result.lrs) == 30 and stopped.outcome == "diverged"


def test_a_device_read_would_be_noticed() -> None:
    model = nn.Linear(4, 3)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        loss = cross_entropy(model(batch[0]), batch[1])
        assert loss.item() > 0
        return loss

    optimizer = lrfast.SGD(model.parameters(), 0.1)
    with NoDeviceReads(), pytest.raises(AssertionError, match="reads a value"):
        lr_find(model, optimizer, make_batches(1), compute_loss=compute_loss, progress=False)


# On a GPU the host learns late that the sweep has ended.

RUNNING = CurveStatus(1, math.nan, math.nan, math.nan, "running", None)


@pytest.mark.parametrize("late", [3, 1000])
@pytest.mark.parametrize("bad", [1e6, math.nan, math.inf])
@pytest.mark.parametrize("kind", OURS)
def test_nothing_changes_after_the_flag(
    kind: str, bad: float, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [*np.linspace(3, 1, 8), bad, *np.linspace(1, 2, 11)]

    def run() -> tuple[RangeTest, list[Any]]:
        setup = build(kind)
        seen = [bits([list(setup.model.parameters()), setup.optimizer.state_dict()["state"]])]

        def note(optimizer: Any, args: Any, kwargs: Any) -> None:
            seen.append(bits([list(setup.model.parameters()), optimizer.state_dict()["state"]]))

        setup.optimizer.register_step_post_hook(note)
        result = lr_find(
            setup.model,
            setup.optimizer,
            [None],
            compute_loss=make_scripted(losses),
            num_iter=20,
            start_lr=1e-3,
            progress=False,
        )
        return result, seen

    prompt, _ = run()
    newest = LossCurve.poll
    past_flag = 0

    def poll(curve: LossCurve) -> CurveStatus:
        nonlocal past_flag
        status = newest(curve)
        past_flag += status.outcome != "running"
        return status if past_flag > late else RUNNING

    monkeypatch.setattr(LossCurve, "poll", poll)
    result, seen = run()
    steps = min(8 + late, 20)  # the loop ends before the update of the loss that it stops at
    assert len(seen) == steps + 1
    assert all(seen[k] != seen[k + 1] for k in range(8))
    assert all(state == seen[8] for state in seen[9:])
    assert result.outcome == prompt.outcome != "completed"
    for field in fields(RangeTest):
        if field.name not in ("seconds", "notes"):
            assert bits(getattr(result, field.name)) == bits(getattr(prompt, field.name))
    assert len(result.lrs) == len(result.derivative) == 9


def test_the_derivative_does_not_look_past_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [*np.linspace(3, 1, 8), 1e6, *np.linspace(1, 2, 11)]
    slopes = []
    for late in (False, True):
        if late:
            monkeypatch.setattr(LossCurve, "poll", lambda curve: RUNNING)
        model = nn.Linear(2, 1)
        optimizer = lrfast.SGD(model.parameters(), 0.1)
        compute_loss = make_scripted(losses)
        options: Any = {"compute_loss": compute_loss, "num_iter": 20, "progress": False}
        slopes.append(lr_find(model, optimizer, [None], **options).derivative)
    np.testing.assert_array_equal(*slopes)
