"""An adaptive range test looks elsewhere when the curve tells nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import trace
from torch import nn

import lrfast
from lrfast import RangeTest


def sweep(start_lr: float, end_lr: float, kind: str = "ours", **options: Any) -> RangeTest:
    """A range test of a linear model that can be fitted at rates around 0.1; leaves no trace."""
    torch.manual_seed(2)
    inputs = torch.randn(400, 4)
    rows = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    batches = list(zip(inputs.split(20), rows.split(20), strict=True))
    model = nn.Linear(4, 1)
    rule = lrfast.SGD if kind == "ours" else torch.optim.SGD
    optimizer = rule(model.parameters(), lr=0.5, momentum=0.5, weight_decay=1e-4)
    before = trace(model, optimizer)
    result = lrfast.lr_find(
        model,
        optimizer,
        batches,
        nn.functional.mse_loss,
        start_lr=start_lr,
        end_lr=end_lr,
        progress=False,
        **options,
    )
    assert trace(model, optimizer) == before
    return result


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_a_range_that_ends_too_early_is_extended(kind: str) -> None:
    plain = sweep(1e-7, 1e-3, kind)
    assert plain.suggestion.confidence <= 0.2 and plain.suggestion.next_range is not None
    assert plain.lrs[-1] == pytest.approx(1e-3)
    result = sweep(1e-7, 1e-3, kind, adaptive=True)
    assert result.suggestion.lr is not None and 1e-3 < result.suggestion.lr < 1.0
    assert result.suggestion.confidence > 0.2
    assert result.lrs[0] == pytest.approx(1e-7) and result.lrs[-1] > 0.05
    assert result.notes[0].startswith("swept again: ")


def test_a_range_that_begins_too_late_is_moved_down() -> None:
    result = sweep(20.0, 200.0, adaptive=True)
    assert result.suggestion.lr is not None and result.suggestion.lr < 1.0


def test_a_good_range_is_swept_once() -> None:
    plain, adaptive = sweep(1e-5, 10.0), sweep(1e-5, 10.0, adaptive=True)
    assert plain.suggestion == adaptive.suggestion and plain.suggestion.lr is not None
    assert not any(note.startswith("swept again") for note in adaptive.notes)


def test_it_gives_up_after_four_sweeps() -> None:
    model = nn.Linear(4, 1)
    calls = 0

    def compute_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss: torch.Tensor = model.weight.sum() * 0.0 + 1.0
        return loss

    result = lrfast.lr_find(
        model,
        lrfast.SGD(model.parameters(), lr=0.1, momentum=0.9),
        [None],
        compute_loss=compute_loss,
        num_iter=20,
        adaptive=True,
        progress=False,
    )
    assert result.suggestion.confidence == 0.2 and calls == 4 * 20
    assert sum(note.startswith("swept again") for note in result.notes) == 3
