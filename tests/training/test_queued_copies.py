"""Copies are queued only towards a GPU: the CPU would read a queued one before it has come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import lrfast
from lrfast.range_test._priors import weight_stats
from lrfast.training._data import to_device
from lrfast.training._step import Training

ROOT = Path(lrfast.__file__).parents[1]
CPU = torch.device("cpu")


class Copies(TorchFunctionMode):
    """Note for each copy that says so, whether it is queued."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.to, Tensor.copy_) and "non_blocking" in (kwargs or {}):
            self.queued.append(kwargs["non_blocking"])
        return func(*args, **(kwargs or {}))


def _batch() -> None:
    to_device({"x": [torch.ones(2)]}, CPU)


def _weight_stats() -> None:
    weight_stats(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))


def _captured_batch() -> None:
    layer = nn.Linear(2, 1)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.1, zero_grads=True)

    def train_step(batch: Tensor) -> Tensor:
        loss: Tensor = layer(batch).sum()
        loss.backward()
        optimizer.step()
        return loss

    lrfast.capture(train_step, optimizer, torch.ones(3, 2))(torch.ones(3, 2))


def _found_inf() -> None:
    scaler = Mock(spec=torch.amp.GradScaler)  # torch's own copies are not counted
    scaler._found_inf_per_device.return_value = {CPU: torch.ones(1)}
    parts = SimpleNamespace(scaler=scaler, optimizer=None, model=nn.Linear(2, 1))
    found = Training.found_inf(parts)  # type: ignore[arg-type]
    assert found is not None and found.tolist() == [1.0]


@pytest.mark.parametrize("copy", [_batch, _weight_stats, _captured_batch, _found_inf])
def test_copies_to_the_cpu_are_not_queued(copy: Callable[[], None]) -> None:
    with Copies() as copies:
        copy()
    assert copies.queued
    assert not any(copies.queued)


@pytest.mark.gpu
def test_a_batch_that_the_gpu_computes_is_there() -> None:
    batch = torch.full((1000,), 3.0, device="cuda") * 2
    assert to_device(batch, CPU).tolist() == [6.0] * 1000
    layer = nn.Linear(1, 1)
    mixed = torch.optim.SGD([*layer.parameters(), nn.Parameter(torch.ones(4, device="cuda"))], 0.1)
    sizes = [p.detach().abs().mean().item() * p.numel() for p in mixed.param_groups[0]["params"]]
    assert weight_stats(mixed).rms == pytest.approx(sum(sizes) / 6)  # no tensor has two sizes


def test_the_engine_queues_no_copy_without_asking_for_the_device() -> None:
    """Only an upload, which goes to a GPU, says so itself."""
    sources = sorted((ROOT / "csrc" / "bindings").glob("*.*"))
    if not sources:
        pytest.skip("an installed package has no sources")
    always = {f.name: f.read_text().count("/*non_blocking=*/true") for f in sources}
    assert {name: count for name, count in always.items() if count} == {
        "plan.cpp": 1,  # a hyperparameter to a GPU's table
        "torch_memory.h": 1,
    }
