"""Whole training steps: how much of the update's gain arrives where forward and backward count too.

The update (clip, AdamW, schedule, average) is also timed alone, on the same models, so that its
share of a step is known. Batches are small where the update is to be a good part of the step.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Measure
from benchmarks.speed import timing
from benchmarks.training import trainers

FLOOR, SHARE = 1.15, 0.25  # fastest torch / lrfast where the update is more than that share
GPU_FLOOR = 1.5  # torch as usual / lrfast captured
CASES = [
    ("cnn", 2),
    ("cnn", 16),
    ("resnet18", 2),
    ("transformer", 1),
    ("transformer", 4),
]


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        pytest.param(*case, marks=[pytest.mark.quick] * (case == ("transformer", 1)))
        for case in CASES
    ],
)
def test_training(measure: Measure, model: str, rows: int) -> None:
    ways = trainers.trainers(model, rows, measure.device)
    trainers.assert_equal_work(ways)
    works = {name: timing.Work(way.step) for name, way in ways.items()}
    for name in (trainers.OURS, trainers.FASTEST):
        works[f"{name}, update"] = timing.Work(ways[name].update)
    row = {
        "model": model,
        "batch": rows,
        "floor": GPU_FLOOR if measure.device == "cuda" else FLOOR,
        "share": SHARE,
    }
    measure("training", row, works, ways=("runs",))
