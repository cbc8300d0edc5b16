"""Whole models with a parameter that never gets a gradient train as without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from idle_parameters import ALL, idle
from tiny import cross_entropy, make_batches
from torch import Tensor, nn

import lrfast

# Of nested and sparse tensors, and of quantised ones.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BATCHES = make_batches(6)
# Kinds whose model torch itself cannot save and load.
NOT_SAVED = ("expanded", "without storage", "lazy", "mkldnn", "nested")
# FineTuner's default, and an optimizer of torch.
MAKERS: tuple[Any, ...] = (lrfast.AdamW, torch.optim.AdamW)


class Model(nn.Module):
    def __init__(self, row: tuple[str, bool] | None) -> None:
        super().__init__()
        torch.manual_seed(3)
        if row is not None:
            self.packed = idle(*row)
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).relu())


def loop(model: Model, optimizer: Any) -> None:
    for inputs, targets in BATCHES[:3]:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def grouped(model: Model, *_: Any) -> None:
    """Layer groups, freezing, learning rates by layer."""
    names = [name for group in lrfast.layer_groups(model) for name in group.names]
    assert ("packed" in names) == hasattr(model, "packed")
    lrfast.layer_groups(model).describe()
    groups = lrfast.discriminative(model, slice(1e-2, 1e-1), no_decay=True)
    optimizer = lrfast.SGD(groups, lr=0.1, momentum=0.8)
    lrfast.freeze_to(optimizer, -1)
    lrfast.set_norm_mode(model.train(), optimizer, "keep")
    loop(model, optimizer)
    lrfast.unfreeze(optimizer)
    loop(model, optimizer)


def unfrozen(model: Model, *_: Any) -> None:
    """Groups that know of no parameter that was frozen before."""
    optimizer = lrfast.SGD([{"params": list(model.parameters())}], lr=0.1)
    lrfast.unfreeze(optimizer)
    loop(model, optimizer)


def wrapped(model: Model, *_: Any) -> None:
    loop(model, lrfast.wrap(torch.optim.AdamW(model.parameters(), lr=0.05)))


def captured(model: Model, *_: Any) -> None:
    optimizer = lrfast.AdamW(model.parameters(), lr=0.05)

    def train_step(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    step = lrfast.capture(train_step, optimizer, BATCHES[0])
    for batch in BATCHES:
        step(batch)


def swept(model: Model, make: Any, _: Path | None) -> None:
    optimizer = make(model.parameters(), lr=0.05)
    found = lrfast.lr_find(
        *(model, optimizer, BATCHES, cross_entropy), num_iter=15, verify=2, progress=False
    )
    assert len(found.losses) > 10
    retest = lrfast.Retest(
        *(model, optimizer, BATCHES, cross_entropy), every=1, budget=None, num_iter=10,
        progress=False,
    )  # fmt: skip
    retest.epoch_end()
    loop(model, optimizer)


def tuned(model: Model, make: Any, path: Path | None) -> None:
    tuner = lrfast.FineTuner(
        *(model, BATCHES, BATCHES), loss_fn=cross_entropy, optimizer=make, progress=False,
        keep_best="valid_loss", ema_decay=0.8 if make is lrfast.AdamW else None,
    )  # fmt: skip
    tuner.lr_find(num_iter=10)
    tuner.freeze()
    tuner.fit_one_cycle(1, 1e-2)
    tuner.unfreeze()
    tuner.fit_one_cycle(1, slice(1e-3, 1e-2))
    tuner.restore_best()
    if path is not None:
        tuner.save(path)
        tuner.load(path)


JOBS = [(job, None) for job in (grouped, unfrozen, wrapped, captured)]
JOBS += [(job, make) for job in (swept, tuned) for make in MAKERS]


@pytest.mark.parametrize("row", ALL, ids=lambda row: f"{row[0]}, {row[1]}")
@pytest.mark.parametrize(("job", "make"), JOBS)
def test_training_is_that_without_it(
    job: Callable[..., None], row: tuple[str, bool], make: Any, tmp_path: Path
) -> None:
    model, alone = Model(row), Model(None)
    saved = None if row[0] in NOT_SAVED else tmp_path / "tuner.pt"
    job(model, make, saved)
    job(alone, make, tmp_path / "alone.pt")
    for name, other in alone.named_parameters():
        assert torch.equal(model.get_parameter(name), other)
        assert not torch.equal(other, Model(None).get_parameter(name))


def test_a_sweep_restores_what_can_be_restored() -> None:
    """Beside a packed weight, which stays as it is."""
    model = Model(("without storage", False))
    before = copy.deepcopy({name: p for name, p in model.named_parameters() if name != "packed"})
    optimizer = lrfast.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lrfast.lr_find(model, optimizer, BATCHES, cross_entropy, num_iter=20, progress=False)
    for name, old in before.items():
        assert torch.equal(model.get_parameter(name), old)


def test_a_lazy_module_is_refused_by_name() -> None:
    """Its initialisation could not be undone."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"lazy '0\.weight'"):
        lrfast.lr_find(model, optimizer, BATCHES, cross_entropy, progress=False)
