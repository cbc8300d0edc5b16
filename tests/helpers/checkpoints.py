"""Trainings that are saved, resumed and compared."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor


def train(optimizer: Any, grads: list[list[Tensor]]) -> None:
    """One step per entry of grads, [steps][parameters]."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step_grads in grads:
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_identical(one: Any, other: Any) -> None:
    """Parameters, states, groups and the schedule's step are equal to the bit."""
    for mine, its in zip(params_of(one), params_of(other), strict=True):
        assert torch.equal(mine, its)
        assert one.state[mine].keys() == other.state[its].keys()
        for name, value in one.state[mine].items():
            assert torch.equal(value, other.state[its][name]), name
            assert value.dtype == other.state[its][name].dtype, name
    assert one.schedule_step == other.schedule_step
    assert one.get_last_lr() == other.get_last_lr()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as a checkpoint goes, safely loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))
