"""Time of AdamW's step with small states, against torch's fused step and other packages.

The packages are those of `make peers`; flashoptim steps on GPUs only. Rows of bfloat16 weights
have half of the gradients' and weights' bytes, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from benchmarks.conftest import Measure
from benchmarks.speed import model_sets, small_states, timing
from benchmarks.speed.implementations import Start


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    parameters: str  # a function of model_sets
    floor: float  # what is aimed at: torch's fused step in float32 / lrfast in 8 bits
    compiled: bool = True  # whether those take part that compile for every shape
    slow: bool = True  # and those that take seconds for a step, and memory for whole tensors


CASES = [
    Case("vit_small", 1.25),
    Case("resnet50", 1.25, compiled=False),
    Case("hundred_million", 1.25, compiled=False, slow=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.parameters)
def test_step(measure: Measure, case: Case) -> None:
    start = Start(getattr(model_sets, case.parameters)(), torch.float32, measure.device)
    contenders, refused = small_states.participants(start, case.compiled, case.slow)
    works = {
        name: timing.Work(entry.step, every=4 if small_states.IMPLEMENTATIONS[name].slow else 1)
        for name, entry in contenders.items()
    }
    moved = {name: round(small_states.IMPLEMENTATIONS[name].moved * start.count) for name in works}
    # Over as much memory as float32's weights, gradients and states occupy.
    more, more_moved = timing.roofs(16 * start.count, measure.device)
    row = {
        "parameters": case.parameters,
        "elements": start.count,
        "work": "AdamW, small states",
        "floor": case.floor,
    }
    measure(
        "small states", row, works | more, ours="lrfast, 8bit", ways=("turns",),
        moved=moved | more_moved, clear=True, refused=refused, counted=False,
    )  # fmt: skip
