"""A suggestion that is applied holds under every schedule, or applying it is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from results import make_result
from retests import RATES, SCHEDULERS, Optimizer, advance, make_groups, rates
from tiny import cross_entropy, make_batches, make_model, used_rates
from torch import Tensor, nn
from torch.optim import lr_scheduler as L

import lrfast
from lrfast import lr_find, schedules
from lrfast.integrations.scheduler import DeviceScheduler

BOTH = pytest.mark.parametrize("make", [torch.optim.SGD, lrfast.SGD], ids=["torch", "lrfast"])
SUGGESTED = [0.07, 0.14, 0.28, 0.56]  # of the four groups, 0.7 times their learning rates


def result(held: int | None = None) -> Any:
    ranges = [(1e-7 * rate, 10.0 * rate) for rate in SUGGESTED]
    if held is not None:
        ranges[held] = (RATES[held], RATES[held])
    return make_result(ranges=tuple(ranges), reference=1, lr=0.14)


def everything(optimizer: Any, scheduler: Any) -> Any:
    """All learning rates that are kept anywhere."""
    own = [{k: float(v) for k, v in g.items() if "lr" in k} for g in optimizer.param_groups]
    held = vars(scheduler).items()
    inner = [everything(optimizer, each) for each in getattr(scheduler, "_schedulers", ())]
    lists = {k: [float(x) for x in v] for k, v in held if "_lr" in k and isinstance(v, list)}
    return own, inner, lists


def peaks(kind: str) -> list[float]:
    return {"one-cycle": [0.1, 0.3, 0.2, 0.4], "one-cycle-three-phase": [0.3] * 4}.get(
        kind, [0.3] * 4 if kind == "cyclic" else list(RATES)
    )


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
@pytest.mark.parametrize("before", [0, 5])
@BOTH
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_next_steps_train_at_the_suggestion_times_the_schedulers_factor(
    kind: str, make: Callable[..., Optimizer], before: int, tensors: bool
) -> None:
    (_, changed), (_, twin) = make_groups(make, tensors), make_groups(make, tensors)
    scheduler, untouched = SCHEDULERS[kind](changed), SCHEDULERS[kind](twin)
    advance(changed, scheduler, before), advance(twin, untouched, before)
    old = peaks(kind) if kind != "plateau" else rates(twin)
    factors = [new / each for new, each in zip(SUGGESTED, old, strict=True)]
    applied = result().apply(changed, schedulers=[scheduler])
    assert applied == pytest.approx(SUGGESTED, rel=1e-12)
    assert applied.old == pytest.approx(old, rel=1e-12)
    for got, want in zip(
        [rates(changed), *advance(changed, scheduler, 20)],
        [rates(twin), *advance(twin, untouched, 20)],
        strict=True,
    ):
        scaled = [f * r for f, r in zip(factors, want, strict=False)]
        assert got[:4] == pytest.approx(scaled, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_undoing_it_goes_back_to_the_schedule_as_it_would_be_now(kind: str, steps: int) -> None:
    (_, changed), (_, twin) = make_groups(), make_groups()
    scheduler, untouched = SCHEDULERS[kind](changed), SCHEDULERS[kind](twin)
    advance(changed, scheduler, 5), advance(twin, untouched, 5)
    before = everything(changed, scheduler)
    applied = result().apply(changed, schedulers=[scheduler])
    assert everything(changed, scheduler) != before
    advance(changed, scheduler, steps), advance(twin, untouched, steps)
    for _ in range(2):
        applied.undo()
        if steps == 0:
            assert everything(changed, scheduler) == before
        assert rates(changed) == pytest.approx(rates(twin), rel=1e-9, abs=1e-15)
    got, want = advance(changed, scheduler, 10), advance(twin, untouched, 10)
    for now, then in zip(got, want, strict=True):
        assert now == pytest.approx(then, rel=1e-9, abs=1e-15)


@BOTH
@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind != "plateau"])
def test_a_scheduler_that_is_not_given_is_refused(
    kind: str, make: Callable[..., Optimizer]
) -> None:
    _, optimizer = make_groups(make)
    scheduler = SCHEDULERS[kind](optimizer)
    before = everything(optimizer, scheduler)
    with pytest.raises(ValueError, match=r"schedulers must hold .* at their next step, got none"):
        result().apply(optimizer)
    assert everything(optimizer, scheduler) == before


def test_a_plateau_that_is_not_given_goes_on_from_the_suggestion() -> None:
    _, optimizer = make_groups()
    scheduler = SCHEDULERS["plateau"](optimizer)
    result().apply(optimizer)
    assert advance(optimizer, scheduler, 1)[0][:4] == pytest.approx(SUGGESTED)


def test_a_held_group_keeps_its_schedule() -> None:
    _, optimizer = make_groups()
    scheduler = L.LinearLR(optimizer, 0.1, 1.0, 10)
    applied = result(held=3).apply(optimizer, schedulers=[scheduler])
    assert applied[3] == RATES[3]
    assert rates(optimizer) == pytest.approx([*(0.1 * r for r in SUGGESTED[:3]), 0.1 * RATES[3]])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda o: L.StepLR(o, 2), TypeError, "schedulers must be a list, got a StepLR"),
        (lambda o: [schedules.cosine(3)], TypeError, "must be of torch.* got a Schedule"),
        (lambda o: [L.StepLR(make_groups()[1], 2)], ValueError, "must be attached to optimizer"),
    ],
)
def test_bad_schedulers(given: Any, error: type[Exception], message: str) -> None:
    _, optimizer = make_groups()
    with pytest.raises(error, match=message):
        result().apply(optimizer, schedulers=given(optimizer))
    assert rates(optimizer) == list(RATES)


def test_a_peak_of_0_has_no_factor() -> None:
    _, optimizer = make_groups()
    optimizer.param_groups[2]["lr"] = 0.0
    scheduler = L.StepLR(optimizer, 2)
    with pytest.raises(ValueError, match="above 0 for every group, got 0 for group 2"):
        result().apply(optimizer, schedulers=[scheduler])


def test_a_scheduler_in_a_trainers_wrapper() -> None:
    _, optimizer = make_groups()
    scheduler: Any = SimpleNamespace(scheduler=L.StepLR(optimizer, 1, 0.5))
    result().apply(optimizer, schedulers=[scheduler])
    assert advance(optimizer, scheduler.scheduler, 1)[0][:4] == pytest.approx(
        [0.5 * rate for rate in SUGGESTED]
    )


@pytest.mark.parametrize("given", [True, False])
def test_lrfasts_own_schedule(given: bool) -> None:
    _, optimizer = make_groups(lrfast.SGD)
    scheduler = DeviceScheduler(optimizer, schedules.linear(1.0, 0.0, 10))
    for each in (p for group in optimizer.param_groups for p in group["params"]):
        each.grad = torch.zeros_like(each)
    optimizer.step(), scheduler.step()
    result().apply(optimizer, schedulers=[scheduler] if given else [])
    factors = (0.9, 0.8)
    for factor in factors:
        wanted = [factor * rate for rate in SUGGESTED]
        assert optimizer.get_last_lr() == pytest.approx(wanted)  # type: ignore[attr-defined]
        assert scheduler.get_last_lr() == pytest.approx(wanted)
        optimizer.step(), scheduler.step()


# --- a range test under a scheduler


@BOTH
@pytest.mark.parametrize("kind", ["lambda", "warm-up", "one group"])
def test_a_warm_up_at_0_hides_no_ratios(kind: str, make: Callable[..., Optimizer]) -> None:
    model = make_model()
    optimizer = make(lrfast.discriminative(model, [0.01, 0.02, 0.05]))
    warm_up: Any = lambda step: min(1.0, step / 10)  # noqa: E731
    scheduler = {
        "lambda": lambda: L.LambdaLR(optimizer, warm_up),
        "warm-up": lambda: L.SequentialLR(
            optimizer, [L.LambdaLR(optimizer, warm_up), L.ConstantLR(optimizer)], [10]
        ),
        "one group": lambda: L.LambdaLR(optimizer, [lambda s: 1.0, warm_up, lambda s: 0.5]),
    }[kind]()
    before = everything(optimizer, scheduler)
    found = lr_find(
        *(model, optimizer, make_batches(4), cross_entropy), num_iter=12, progress=False, end_lr=1.0
    )
    assert found.ratios == pytest.approx([0.2, 0.4, 1.0])
    assert everything(optimizer, scheduler) == before
    found.apply(optimizer, "minimum", schedulers=[scheduler])
    optimizer.step()
    for _ in range(10):
        scheduler.step()
    expected = found.suggested_lrs("minimum")
    if kind == "warm-up":
        expected = [rate / 3 for rate in expected]
    if kind == "one group":
        expected[2] *= 0.5
    assert rates(optimizer) == pytest.approx(expected)


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
@BOTH
def test_a_step_function_may_step_its_scheduler(
    make: Callable[..., Optimizer], tensors: bool
) -> None:
    model = make_model()
    rate: Any = torch.tensor(0.05, dtype=torch.float64) if tensors else 0.05
    optimizer = make(model.parameters(), lr=rate)
    scheduler = L.ExponentialLR(optimizer, 0.5)
    before = everything(optimizer, scheduler)
    used = used_rates(optimizer)

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    options: Any = {"num_iter": 12, "end_lr": 1.0, "start_lr": 1e-3, "diverge_threshold": None}
    found = lr_find(model, optimizer, make_batches(4), step_fn=step, progress=False, **options)
    swept = found.sweep.table()[:, 0]
    assert [each[0] for each in used] == pytest.approx(swept, rel=1e-6)
    assert found.lrs == pytest.approx(swept, rel=1e-6)
    assert everything(optimizer, scheduler) == before


# --- two schedules at once


@pytest.mark.parametrize("first", ["lrfast", "torch"])
def test_two_schedules_are_warned_of(first: str) -> None:
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    ours = lambda: optimizer.set_schedule(schedules.cosine(10))  # noqa: E731
    if first == "torch":
        L.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        with pytest.warns(UserWarning, match="the two multiply; leave out one of them"):
            ours()
    else:
        ours()
        L.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    model(torch.ones(1, 2)).sum().backward()
    with pytest.warns(UserWarning, match="the two multiply; leave out one of them"):
        optimizer.step()


def test_one_schedule_is_not_warned_of() -> None:
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("torch", "plateau", "lrfast", "device"):
            optimizer = lrfast.SGD(model.parameters(), lr=0.1)
            if kind in ("torch", "plateau"):
                SCHEDULERS["step" if kind == "torch" else "plateau"](optimizer)
            elif kind == "lrfast":
                optimizer.set_schedule(schedules.cosine(10))
            else:
                DeviceScheduler(optimizer, schedules.cosine(10))
            lr_find(
                *(model, optimizer, make_batches(4), cross_entropy), num_iter=12, progress=False
            )
            cross_entropy(model(make_batches(1)[0][0]), make_batches(1)[0][1]).backward()
            optimizer.step()
        optimizer.set_schedule(None)
