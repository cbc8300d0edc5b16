"""Memory runs out at every allocation in turn: what trains stays as it was, nothing is kept."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_runs
from sweep_setups import build
from tiny import OPTIMIZERS, cross_entropy, make_batches
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tuners import make_tuner

import lrfast
from lrfast import lr_find, snapshot
from lrfast.snapshot import Snapshot, is_out_of_memory

MESSAGE = (
    r"no memory for a snapshot, which copies [\d.]+ MiB of cpu; .*on_host=True.*snapshot='host'"
)
KINDS = pytest.mark.parametrize("kind", [*OPTIMIZERS])


class Scarce(TorchDispatchMode):
    """Fails the n-th operation that needs new memory, and counts them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(each.alias_info is None for each in func._schema.returns):
            self.count += 1
            if self.count == self.at:
                raise torch.OutOfMemoryError("tried to allocate 1 KiB")
        return func(*args, **kwargs or {})


def tensors() -> int:
    """Tensors that are alive."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def each_allocation(act: Callable[[], Any], stride: int = 1) -> list[tuple[int, BaseException]]:
    """Let one allocation of the act fail after another, until none is left to fail."""
    errors: list[tuple[int, BaseException]] = []
    at = 1
    while True:
        with Scarce(at) as scarce:
            try:
                act()
            except Exception as error:
                errors.append((at, error))
        if scarce.count < at:
            return errors
        at += stride


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("optimizer", sorted(training_runs.OPTIMIZERS))
def test_no_memory_for_a_snapshot(optimizer: str, on_host: bool) -> None:
    run = training_runs.build(optimizer=optimizer)
    training_runs.train(run, 5)
    untouched, alive = training_runs.trace(run), tensors()

    def take() -> None:
        Snapshot(run.model, run.optimizer, on_host=on_host, **run.watched())

    errors = each_allocation(take)
    assert len(errors) > 20
    assert training_runs.trace(run) == untouched
    for _, error in errors:
        assert isinstance(error, MemoryError)
        assert isinstance(error.__cause__, torch.OutOfMemoryError)
        assert re.search(MESSAGE, str(error))
    assert tensors() == alive  # while all errors are still held


@KINDS
def test_no_memory_in_a_range_test(kind: str) -> None:
    """Whatever allocation fails, in the copies, in the sweep or as all is put back."""
    setup = build(kind, "ours" if kind in ("sgd", "adamw") else "torch")
    setup.train(4)
    untouched = setup.trace()
    batches = make_batches(3)
    settings = {"num_iter": 3, "progress": False, "end_lr": 0.1}
    model, optimizer = setup.model, setup.optimizer
    others = [] if setup.scheduler is None else [setup.scheduler]

    def find() -> None:
        try:
            lr_find(model, optimizer, batches, cross_entropy, others=others, **settings)
        finally:
            assert setup.trace() == untouched

    errors = each_allocation(find, stride=3)
    assert len(errors) > 30
    assert all(is_out_of_memory(error) for _, error in errors)


def test_no_memory_in_a_race_and_in_a_retest() -> None:
    setup = build("adamw", "ours")
    setup.train(4)
    untouched = setup.trace()
    batches = make_batches(4)
    model, optimizer = setup.model, setup.optimizer
    settings: dict[str, Any] = {"num_iter": 12, "progress": False, "end_lr": 0.1}
    retest = lrfast.Retest(
        model, optimizer, batches, cross_entropy, every=1, budget=None, **settings
    )
    log = retest.state_dict()

    def race() -> None:
        try:
            lr_find(model, optimizer, batches, cross_entropy, verify=2, **settings)
        finally:
            assert setup.trace() == untouched

    def again() -> None:
        try:
            retest.epoch_end()
        except torch.OutOfMemoryError:
            assert setup.trace() == untouched
            raise
        finally:
            optimizer.load_state_dict(state)
            retest.load_state_dict(log)

    state = optimizer.state_dict()
    assert len(each_allocation(race, stride=97)) > 5
    assert len(each_allocation(again, stride=97)) > 2


def test_no_memory_as_a_snapshot_is_restored() -> None:
    run = training_runs.build(optimizer="adamw")
    training_runs.train(run, 5)
    untouched = training_runs.trace(run)
    saved = Snapshot(run.model, run.optimizer, **run.watched())
    failed = []

    class Greedy:
        """An object whose state needs memory as it is put back."""

        def __init__(self) -> None:
            self.state = {"values": torch.ones(3)}

        def state_dict(self) -> dict[str, Any]:
            return {"values": self.state["values"].clone()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = {"values": state["values"].clone()}

    first, second = Greedy(), Greedy()
    saved = Snapshot(run.model, run.optimizer, others=(first, second, *run.watched()["others"]))

    def restore(at: int) -> None:
        training_runs.sweep(run)
        second.state["values"] = torch.zeros(3)
        with torch.no_grad():
            try:
                with Scarce(at):
                    saved.restore()
            finally:
                found = training_runs.trace(run)
                failed.append([k for k in untouched if found[k] != untouched[k]])

    for at in (1, 2):  # the first object's
        with pytest.raises(torch.OutOfMemoryError):
            restore(at)
        assert torch.equal(second.state["values"], torch.ones(3))
    assert all(each in ([], ["loader"]) for each in failed)


def test_no_memory_as_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    tuner = make_tuner("adamw", keep_best="accuracy")
    tuner.fit_one_cycle(1, 0.02)
    tuner.save(tmp_path / "one.pt")
    taker = make_tuner("adamw", keep_best="accuracy")
    taker.fit_one_cycle(1, 0.01)

    def left() -> Any:
        assert taker.best is not None
        parts = [taker.model.state_dict(), taker.optimizer.state_dict(), taker.best.state_dict()]
        parts += [random.getstate(), np.random.get_state(), list(map(id, taker.history.stages))]
        return training_runs.bits(parts)

    before = left()
    errors = []
    for at in range(1, 400, 5):
        with Scarce(at) as scarce:
            try:
                taker.load(tmp_path / "one.pt")
            except (MemoryError, RuntimeError, ValueError) as error:
                errors.append(error)
        if scarce.count < at:
            break
        assert left() == before
    assert len(errors) > 5 and left() != before
    assert all(isinstance(error, MemoryError | torch.OutOfMemoryError) for error in errors)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_another_error_in_a_snapshot_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such thing")

    model = nn.Linear(2, 1)
    monkeypatch.setattr(snapshot.GlobalRandom, "take", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
