"""A re-test moves a whole schedule, whoever makes it: it goes on as its untouched twin, scaled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from retests import (
    RATES,
    SCHEDULERS,
    Finder,
    Optimizer,
    advance,
    fake_lr_find,
    make_groups,
    make_retest,
    rates,
)
from torch.optim import lr_scheduler as L

import lrfast
from lrfast import schedules


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    return fake_lr_find(monkeypatch)


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
@pytest.mark.parametrize("make", [torch.optim.SGD, lrfast.SGD], ids=["torch", "ours"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_schedule_of_torch_goes_on_scaled(
    kind: str, make: Callable[..., Optimizer], tensors: bool, finder: Finder
) -> None:
    (_, changed), (_, twin) = make_groups(make, tensors), make_groups(make, tensors)
    scheduler, untouched = SCHEDULERS[kind](changed), SCHEDULERS[kind](twin)
    retest = make_retest(finder, changed, schedulers=[scheduler])
    advance(changed, scheduler, 5), advance(twin, untouched, 5)
    objects = [group["lr"] for group in changed.param_groups]
    entry = retest.epoch_end()
    assert entry is not None and entry.outcome == "applied"
    factors = [3.0, 3.0, 3.0, 1.0]
    now = [f * r for f, r in zip(factors, rates(twin), strict=True)]
    assert rates(changed) == pytest.approx(now, rel=1e-12)
    said = [f * float(r) for f, r in zip(factors, untouched.get_last_lr(), strict=True)]
    assert [float(lr) for lr in scheduler.get_last_lr()] == pytest.approx(said, rel=1e-12)
    for new, old, factor in zip(entry.new, entry.old, factors, strict=True):
        assert new == pytest.approx(factor * old, rel=1e-12)
    for got, want in zip(
        advance(changed, scheduler, 20), advance(twin, untouched, 20), strict=True
    ):
        scaled = [f * r for f, r in zip(factors * 2, want, strict=True)]
        assert got == pytest.approx(scaled, rel=1e-9, abs=1e-15)
    if tensors:
        kept = zip(objects, changed.param_groups, strict=True)
        assert all(lr is group["lr"] for lr, group in kept)


@pytest.mark.parametrize("kind", ["one-cycle", "cyclic", "cosine", "lambda"])
def test_a_suggestion_is_read_as_the_peak(kind: str, finder: Finder) -> None:
    peaks = {"one-cycle": [0.1, 0.3, 0.2, 0.4], "cyclic": [0.3] * 4}.get(kind, list(RATES))
    _, optimizer = make_groups()
    scheduler = SCHEDULERS[kind](optimizer)
    retest = make_retest(finder, optimizer, schedulers=[scheduler])
    advance(optimizer, scheduler, 5)
    entry = retest.unfrozen()
    assert entry.old == pytest.approx(peaks)
    assert entry.new == pytest.approx([3 * p for p in peaks[:3]] + peaks[3:])


def test_the_floor_of_a_cosine_stays(finder: Finder) -> None:
    _, optimizer = make_groups()
    scheduler = L.CosineAnnealingLR(optimizer, 10, eta_min=0.01)
    make_retest(finder, optimizer, schedulers=[scheduler]).epoch_end()
    assert advance(optimizer, scheduler, 10)[-1][:3] == pytest.approx([0.01] * 3)


def test_our_schedule_goes_on_scaled(finder: Finder) -> None:
    (_, changed), (_, twin) = make_groups(lrfast.SGD), make_groups(lrfast.SGD)
    for optimizer in (changed, twin):
        optimizer.set_schedule(schedules.one_cycle(20))
    retest = make_retest(finder, changed)
    for k in range(20):
        for optimizer in (changed, twin):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        if k == 4:
            retest.epoch_end()
        factors = [1.0 if k < 4 else 3.0] * 3 + [1.0]
        want = [f * r for f, r in zip(factors, twin.get_last_lr(), strict=True)]
        assert changed.get_last_lr() == pytest.approx(want, rel=1e-12)
    assert changed.schedule_step == 20
