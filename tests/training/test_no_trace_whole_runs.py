"""A range test leaves no trace, bit for bit, however it ends: the claim over whole runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from training_runs import OPTIMIZERS, bits, build, sweep, trace, train

from lrfast.snapshot import Snapshot, preserved


@pytest.mark.parametrize("error", [None, RuntimeError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_sweep_then_train_is_train(
    optimizer: str, own_generator: bool, before: int, error: BaseException | None
) -> None:
    check_claim(error, before, optimizer=optimizer, own_generator=own_generator)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("own_generator", [True, False])
def test_sweep_then_train_is_train_with_workers(own_generator: bool, persistent: bool) -> None:
    check_claim(None, 0, own_generator=own_generator, workers=2, persistent=persistent)


def check_claim(error: BaseException | None, before: int, **options: Any) -> None:
    plain = build(**options)
    plain_losses = train(plain, before) + train(plain, 5)
    expected = trace(plain)

    swept = build(**options)
    losses = train(swept, before)
    untouched = trace(swept)
    leaves = nullcontext() if error is None else pytest.raises(type(error))
    with leaves, preserved(swept.model, swept.optimizer, **swept.watched()):
        sweep(swept, error)
    assert trace(swept) == untouched
    losses += train(swept, 5)
    assert bits(losses) == bits(plain_losses)
    assert trace(swept) == expected


def test_the_sweep_would_leave_a_trace() -> None:
    run = build(optimizer="adamw")
    train(run, 5)
    untouched = trace(run)
    sweep(run)
    after = trace(run)
    assert [name for name in after if after[name] == untouched[name]] == []


def test_restores_as_often_as_asked() -> None:
    run = build(optimizer="adamw")
    train(run, 5)
    untouched = trace(run)
    snapshot = Snapshot(run.model, run.optimizer, **run.watched())
    for _ in range(3):
        sweep(run)
        snapshot.restore()
        assert trace(run) == untouched
