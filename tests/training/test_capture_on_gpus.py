"""Captures as only a GPU, or a simulated one, can show them: its devices, streams and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfast

pytestmark = pytest.mark.gpu


def _line(
    device: str = "cuda", **options: Any
) -> tuple[nn.Parameter, lrfast.SGD, Callable[[Tensor], Tensor]]:
    """A vector that trains to become zero, its optimizer, and the step."""
    weights = nn.Parameter(torch.ones(8, device=device))
    optimizer = lrfast.SGD([weights], zero_grads=True, **({"lr": 0.01} | options))

    def step(batch: Tensor) -> Tensor:
        loss = (weights * batch).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return weights, optimizer, step


def test_a_first_replay_after_a_new_capture_finds_its_gradients() -> None:
    losses = []
    for is_captured in (False, True):
        _, optimizer, step = _line(lr=0.1)
        batch = torch.full((8,), 0.5, device="cuda")
        run: Any = step
        if is_captured:
            run = lrfast.capture(step, optimizer, batch, recapture="auto", warmup=1)
        losses.append([])
        for number in range(6):
            if number in (2, 4):
                optimizer.zero_grad()  # to None, which a graph cannot follow
            losses[-1].append(run(batch).item())
    assert losses[0] == losses[1]
