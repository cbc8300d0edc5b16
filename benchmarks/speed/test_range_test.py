"""What a range test costs against the plain training loop of as many steps, and against peers.

The bare loop is torch's default implementation of the optimizer with a snapshot before it and a
restore after it: what a sweep cannot do without. Sweeps are interleaved in one process, since on a
shared machine timings made one after the other differ by more than the sweeps do.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Measure
from benchmarks.speed import finder_loops, finder_peers, timing

CASES = [(model, rule) for model in finder_loops.MODELS for rule in ("SGD", "AdamW")]


@pytest.mark.parametrize(
    ("model", "rule"),
    [pytest.param(*case, marks=[pytest.mark.quick] * (case == ("mlp", "AdamW"))) for case in CASES],
)
def test_sweep(measure: Measure, model: str, rule: str) -> None:
    sweepers = finder_loops.make_sweepers(model, rule, measure.device)
    refused = finder_loops.participants(sweepers)
    works = {name: timing.Work(sweeper.sweep) for name, sweeper in sweepers.items()}
    row = {
        "model": model,
        "batch": finder_loops.MODELS[model][1],
        "optimizer": rule,
        "steps": finder_peers.STEPS,
    }
    measure("sweeps", row, works, ways=("turns",), refused=refused)
