"""Loaders with more batches, or fewer, than their length says; data that run out."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import lrfast
from lrfast import schedules

cross_entropy = nn.functional.cross_entropy
MAKERS: dict[str, Any] = {"lrfast": lrfast.SGD, "torch": torch.optim.SGD}


class Loader:
    """Batches in the same order in each epoch, and a length that may be another."""

    def __init__(self, says: int, has: int) -> None:
        self.says = says
        inputs = torch.randn(has * 4, 3, generator=torch.Generator().manual_seed(2))
        targets = inputs.argmax(1)
        self.batches = [(inputs[i : i + 4], targets[i : i + 4]) for i in range(0, has * 4, 4)]

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Stream(IterableDataset[Any]):
    """A stream whose length is that of another run."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(3), 1)] * 12)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 3)


def tuner(data: Any, valid: Any = None, make: Any = lrfast.SGD, **options: Any) -> lrfast.FineTuner:
    return lrfast.FineTuner(
        network(), data, valid, loss_fn=cross_entropy, optimizer=make, progress=False, **options
    )


def plain_loop(make: Any, rates: Any, batches: Any) -> nn.Module:
    """The loop that a user would write, at these learning rates."""
    model = network()
    optimizer = make(model.parameters(), lr=0.1)
    for rate, (inputs, targets) in zip(rates, batches, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_training_goes_on_at_the_last_learning_rate(
    name: str, captures: bool, accumulate: int
) -> None:
    """All batches train, in every epoch, and the history has a loss of each update."""
    if captures and name == "torch":
        pytest.skip("only lrfast's steps are captured")
    data = Loader(says=5, has=8)
    tune = tuner(data, make=MAKERS[name], capture=captures, gradient_accumulation_steps=accumulate)
    schedule = schedules.linear(1.0, 0.25, 2 * tune.epoch_steps)
    with pytest.warns(UserWarning, match="as its length says, 5, got more in epoch 1") as seen:
        stage = tune.fit(2, schedule, 0.1)
    updates = 16 // accumulate
    assert len([each for each in seen if "length" in str(each.message)]) == 1
    assert len(stage.losses) == updates and np.isfinite(stage.losses).all()
    wanted = 0.1 * schedule.values(np.arange(updates))
    np.testing.assert_allclose(stage.rates[:, 0], wanted)
    assert wanted[-1] == wanted[-2] == pytest.approx(0.025)
    if accumulate == 1:
        model = plain_loop(MAKERS[name], wanted, data.batches * 2)
        assert torch.allclose(model.weight, tune.model.weight, atol=1e-6)


def test_fewer_batches_are_told_of() -> None:
    tune = tuner(Loader(says=9, has=6))
    with pytest.warns(UserWarning, match="length says, 9, got fewer in epoch 1: .* its 18 planned"):
        stage = tune.fit_one_cycle(2, 0.1)
    assert len(stage.losses) == 12


def test_as_many_batches_as_the_length_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner(Loader(says=6, has=6)).fit_one_cycle(2, 0.1)


@pytest.mark.parametrize("at", [3, 7, 10])
def test_an_interrupted_long_stage_is_resumed(at: int, tmp_path: Path) -> None:
    """In the first epoch within and beyond its length, and in the second."""

    class Interrupt(lrfast.finetune.Callback):
        def on_step_end(self, tuner: Any, step: int, loss: Tensor) -> None:
            if step == at:
                raise KeyboardInterrupt

    data = Loader(says=5, has=8)
    whole, part = tuner(data), tuner(data, callbacks=[Interrupt()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        wanted = whole.fit_one_cycle(2, 0.1)
        with pytest.raises(KeyboardInterrupt):
            part.fit_one_cycle(2, 0.1)
        part.callbacks.clear()
        part.save(tmp_path / "part.pt")
        other = tuner(data)
        other.load(tmp_path / "part.pt")
        stage = other.resume()
    assert np.array_equal(stage.losses, wanted.losses)
    assert np.array_equal(stage.rates, wanted.rates)
    assert torch.equal(other.model.weight, whole.model.weight)


def test_a_stream_with_a_length_trains_and_is_swept() -> None:
    """torch warns of such a loader itself."""
    data = DataLoader(Stream(), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stage = tuner(data).fit_one_cycle(3, 0.1)
        model = network()
        optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        arguments = (model, optimizer, data, cross_entropy)
        found = lrfast.lr_find(*arguments, num_iter=15, diverge_threshold=None, progress=False)
        retest = lrfast.Retest(*arguments, every=1, budget=None, num_iter=10, progress=False)
        entry = retest.epoch_end()
    assert len(stage.losses) == 18 and len(found.losses) == 15 and entry is not None


@pytest.mark.parametrize("kind", [iter, lambda batches: (batch for batch in batches)])
def test_validation_data_that_run_out_are_named(kind: Any) -> None:
    """They served the first epoch."""
    data = Loader(says=4, has=4)
    again = (
        "val_loader must yield .* has ended and cannot be iterated again; pass a loader or a list"
    )
    with pytest.raises(ValueError, match=again):
        tuner(data, kind(data.batches)).fit_one_cycle(2, 0.1)
    model = network()
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="cannot be iterated again"):
        lrfast.lr_find(
            *(model, optimizer, data, cross_entropy), val_loader=itertools.chain(data.batches),
            num_iter=10, progress=False,
        )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
