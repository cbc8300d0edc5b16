"""No trace, bit for bit, of range tests of every kind: "range test, train N" is "train N"."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sweep_setups import Setup, build
from tiny import OPTIMIZERS, Noisy, bits, cross_entropy, make_batches
from torch import Tensor
from torch.utils.data import DataLoader

from lrfast import RangeTest, lr_find, range_test

ALL = pytest.mark.parametrize("kind", OPTIMIZERS)


@dataclass
class Scaled(Setup):
    """A training run with a scaler that overflows now and then."""

    scaler: torch.amp.GradScaler

    def train(self, steps: int) -> list[Tensor]:
        losses = []
        batches: Any = (batch for _ in range(steps) for batch in self.loader)
        for _, (inputs, targets) in zip(range(steps), batches, strict=False):
            self.optimizer.zero_grad()
            loss = 8 * cross_entropy(self.model(inputs), targets)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.detach())
        return losses

    def trace(self) -> dict[str, Any]:
        return super().trace() | {"scaler": bits(self.scaler.state_dict())}


def build_scaled(kind: str) -> Scaled:
    setup = build(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
    return Scaled(setup.model, setup.optimizer, setup.loader, None, scaler)


def build_with_workers(kind: str, persistent: bool) -> Setup:
    setup = build(kind)
    setup.loader = DataLoader(
        Noisy(),
        batch_size=4,
        shuffle=True,
        num_workers=2,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(6),
    )
    return setup


def sweep(setup: Setup, **options: Any) -> RangeTest:
    """A range test over 12 rates."""
    if isinstance(setup, Scaled):
        options["scaler"] = setup.scaler
    settings = {
        "num_iter": 12,
        "diverge_threshold": None,
        "start_lr": 1e-3,
        "end_lr": 0.5,
    } | options
    loss_fn = settings.pop("loss_fn", cross_entropy)
    return lr_find(setup.model, setup.optimizer, setup.loader, loss_fn, progress=False, **settings)


def check(build: Callable[[], Setup], act: Callable[[Setup], object], before: int = 5) -> None:
    """What ``act`` does in the middle of a training run leaves no trace in it."""
    plain = build()
    losses = plain.train(before) + plain.train(15)
    swept = build()
    swept_losses = swept.train(before)
    untouched = swept.trace()
    act(swept)
    assert swept.trace() == untouched
    swept_losses += swept.train(15)
    assert bits(swept_losses) == bits(losses)
    assert swept.trace() == plain.trace()


OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "repeats": {"repeats": 3},
    "verify": {"verify": 10},
    "val_loader": {"val_loader": make_batches(2)},
    "same_batch": {"same_batch": True},
    "lag": {"lag": 1},
    "linear, one group": {"mode": "linear", "vary": 1},
    "on the host": {"snapshot": "host"},
    "many": {
        "gradient_accumulation_steps": 2,
        "repeats": 2,
        "verify": 4,
        "val_loader": make_batches(2),
    },
}


@ALL
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("name", OPTIONS)
def test_sweep_then_train_is_train(kind: str, name: str, before: int) -> None:
    check(lambda: build(kind), lambda setup: sweep(setup, **OPTIONS[name]), before)


@ALL
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize(
    "name", ["gradient_accumulation_steps", "repeats", "verify", "val_loader", "lag"]
)
def test_with_a_scaler(kind: str, name: str, before: int) -> None:
    options = OPTIONS[name] | {"loss_fn": lambda outputs, y: 8 * cross_entropy(outputs, y)}
    check(lambda: build_scaled(kind), lambda setup: sweep(setup, **options), before)


@pytest.mark.parametrize("schedule", ["ours", "torch"])
@pytest.mark.parametrize("name", ["verify", "repeats"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_with_a_schedule_attached(kind: str, name: str, schedule: str) -> None:
    check(lambda: build(kind, schedule), lambda setup: sweep(setup, **OPTIONS[name]))


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_validation_data_that_shuffle(kind: str) -> None:
    """By the global generator, which the training data draw from as well."""

    def act(setup: Setup) -> None:
        for name in ("val_loader", "judge"):
            loader: Any = DataLoader(Noisy(), batch_size=4, shuffle=True)
            sweep(setup, verify=4, **{name: loader})

    check(lambda: build(kind, own_generator=False), act)


@pytest.mark.parametrize("name", ["val_loader", "judge"])
def test_the_order_of_validation_data_with_a_generator_of_their_own(name: str) -> None:
    generator = torch.Generator().manual_seed(9)
    loader: Any = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)
    before = bits(generator.get_state())
    sweep(build("sgd"), verify=4, **{name: loader})
    assert bits(generator.get_state()) == before


@pytest.mark.one_row
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_a_loader_with_workers(kind: str, persistent: bool) -> None:
    """Its first pass begins after the sweeps: workers that run already cannot be taken back."""
    act = lambda setup: sweep(setup, repeats=2, verify=4)  # noqa: E731
    check(lambda: build_with_workers(kind, persistent), act, before=0)


def test_a_loader_with_workers_in_the_middle() -> None:
    check(lambda: build_with_workers("sgd", False), lambda setup: sweep(setup, repeats=2))


class Failing:
    """A loss that raises in one of its calls with gradients."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.calls = 0
        self._at = at
        self._error = error

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        if self.calls == self._at and torch.is_grad_enabled():
            raise self._error
        return cross_entropy(outputs, targets)


@ALL
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"verify": 10}, 12 + 4),
        ({"verify": 10}, 12 + 10 + 7),
        ({"repeats": 3}, 12 + 6),
        ({"repeats": 2, "verify": 6, "gradient_accumulation_steps": 2}, 2 * (24 + 6) + 1),
        ({"val_loader": make_batches(2)}, 7),
        ({"lag": 1}, 12),
    ],
    ids=["race", "second run", "second sweep", "race after repeats", "valid", "lag"],
)
def test_after_an_interrupt(kind: str, options: Any, at: int, error: type[BaseException]) -> None:
    def act(setup: Setup) -> None:
        failing = Failing(at, error)
        with pytest.raises(error):
            sweep(setup, loss_fn=failing, **options)
        assert failing.calls == at

    check(lambda: build(kind), act)


@ALL
def test_a_step_function_that_changes_more(kind: str) -> None:
    """Its scheduler is put back, for it is named in ``others``."""

    def act(setup: Setup) -> None:
        scheduler = setup.scheduler
        assert scheduler is not None
        before = scheduler.state_dict()["last_epoch"]

        def step(batch: Any) -> Tensor:
            setup.optimizer.zero_grad()
            loss = cross_entropy(setup.model(batch[0]), batch[1])
            loss.backward()
            setup.optimizer.step()
            scheduler.last_epoch += 1
            return loss

        sweep(setup, loss_fn=None, step_fn=step, others=[scheduler])
        assert scheduler.last_epoch == before

    check(lambda: build(kind, "torch"), act)


def test_without_the_snapshot_a_race_would_leave_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        nbytes = 0
        notes = ()

        def restore(self) -> None:
            pass

    setup = build("sgd")
    untouched = setup.trace()
    kept = lambda *args, **options: nullcontext(Nothing())  # noqa: E731
    monkeypatch.setattr(range_test._lr_find, "preserved", kept)
    sweep(setup, verify=4)
    found = setup.trace()
    assert {"parameters", "buffers", "optimizer"} <= {k for k in found if found[k] != untouched[k]}
