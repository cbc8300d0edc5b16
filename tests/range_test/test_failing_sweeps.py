"""What raises inside a sweep: all is as before, the error is the same object, nobody is left."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweep_setups import Setup, build
from tiny import OPTIMIZERS, Noisy, cross_entropy
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from lrfast import lr_find


class Torn(Exception):
    """What a dataset, a worker, a hook or a loss raises."""


class Failing(Noisy):
    """Raises, or presses Ctrl-C, at the n-th row that it is asked for in one process."""

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what, self.seen = at, what, 0

    def __getitem__(self, index: int) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt if self.what == "is interrupted" else Torn("row")
        return super().__getitem__(index)


def build_failing(kind: str, workers: int, what: str, persistent: bool = False) -> Setup:
    """A training run over data that fail in the middle, whoever loads them."""
    setup = build(kind, "ours" if kind in ("sgd", "adamw") else "torch")
    data = Failing(14 if workers == 0 else 5, what)  # rows, two to a batch
    setup.loader = DataLoader(
        data,
        batch_size=2,
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(6),
    )
    return setup


def find(setup: Setup, loss_fn: Callable[..., Tensor] = cross_entropy, **options: Any) -> None:
    settings = {
        "num_iter": 9,
        "diverge_threshold": None,
        "end_lr": 0.1,
        "progress": False,
    } | options
    others = [] if setup.scheduler is None else [setup.scheduler]
    lr_find(setup.model, setup.optimizer, setup.loader, loss_fn, others=others, **settings)


def assert_nobody_is_left(before: set[int | None]) -> None:
    """No worker runs on, and none is a zombie."""
    limit = time.monotonic() + 20
    while {child.pid for child in multiprocessing.active_children()} - before:
        assert time.monotonic() < limit, "workers are left"
        time.sleep(0.05)


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize("options", [{}, {"repeats": 2}, {"verify": 2}], ids=str)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["adamw"])
def test_a_worker_that_raises(kind: str, persistent: bool, options: Any) -> None:
    setup = build_failing(kind, 2, "raises", persistent)
    untouched, before = setup.trace(), children()
    with pytest.raises(Torn, match="row") as caught:
        find(setup, **options)
    assert "DataLoader worker process" in str(caught.value)
    assert setup.trace() == untouched
    assert_nobody_is_left(before)  # although the error lives, and all that its traceback holds


def test_validation_data_whose_worker_raises() -> None:
    setup = build("sgd", "ours")
    valid = build_failing("sgd", 1, "raises").loader
    untouched, before = setup.trace(), children()
    with pytest.raises(Torn, match="row"):
        find(setup, val_loader=valid)
    assert setup.trace() == untouched
    assert_nobody_is_left(before)


@pytest.mark.parametrize(
    ("what", "error"), [("raises", Torn), ("is interrupted", KeyboardInterrupt)]
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_dataset_that_raises(kind: str, what: str, error: type[BaseException]) -> None:
    setup = build_failing(kind, 0, what)
    untouched = setup.trace()
    with pytest.raises(error) as caught:
        find(setup)
    assert caught.type is error and caught.value.__cause__ is None
    assert setup.trace() == untouched


def raising(at: int, error: BaseException) -> Callable[..., None]:
    """A hook of any kind that raises at its n-th call."""
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error

    return hook


def _layer(setup: Setup, place: int) -> Any:
    return setup.model.get_submodule(str(place))


HOOKS: dict[str, Callable[[Setup, Any], Any]] = {
    "forward": lambda setup, hook: _layer(setup, 2).register_forward_hook(hook),
    "backward": lambda setup, hook: _layer(setup, 2).register_full_backward_hook(hook),
    "parameter": lambda setup, hook: _layer(setup, 4).weight.register_hook(hook),
    "accumulated": lambda setup, hook: _layer(setup, 4).weight.register_post_accumulate_grad_hook(
        hook
    ),
    "before a step": lambda setup, hook: setup.optimizer.register_step_pre_hook(hook),
    "after a step": lambda setup, hook: setup.optimizer.register_step_post_hook(hook),
}


@pytest.mark.parametrize("error", [Torn("hook"), KeyboardInterrupt("hook")], ids=repr)
@pytest.mark.parametrize("place", HOOKS)
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_a_hook_that_raises(kind: str, place: str, error: BaseException) -> None:
    setup = build(kind, "ours" if kind == "adamw" else "torch")
    setup.train(2)
    untouched = setup.trace()
    handle = HOOKS[place](setup, raising(3, error))
    with pytest.raises(type(error), match="hook") as caught:
        find(setup)
    handle.remove()
    assert caught.value is error
    assert setup.trace() == untouched
    setup.train(1)  # it can train on


def test_workers_see_that_they_are_workers() -> None:
    """The data above do fail where they are said to: in a worker, with nothing raised here."""
    assert get_worker_info() is None
    loader = build_failing("sgd", 1, "raises").loader
    data: Any = loader.dataset
    with pytest.raises(Torn):
        list(loader)
    assert data.seen == 0
