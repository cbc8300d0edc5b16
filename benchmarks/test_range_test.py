"""What a range test costs against the plain training loop of as many steps, and against peers.

The bare loop is torch's default implementation of the optimizer with a snapshot before it and a
restore after it: what a sweep cannot do without. Sweeps are interleaved in one process, since on a
shared machine timings made one after the other differ by more than the sweeps do. Quartiles go into
``extra_info``; what pytest-benchmark itself times is lrfast's sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import finder_loops, timing


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
@pytest.mark.parametrize("model", finder_loops.MODELS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sweep(
    benchmark: Any, request: pytest.FixtureRequest, device: str, model: str, rule: str
) -> None:
    sync: Callable[[], None] | None = None
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        sync = torch.cuda.synchronize
    sweepers = finder_loops.make_sweepers(model, rule, device)
    finder_loops.assert_equal_work(sweepers)
    works = {name: timing.Work(sweeper.sweep) for name, sweeper in sweepers.items()}
    seconds = request.config.getoption("--seconds")
    benchmark.group = f"{device}: sweep-{model}-{rule}"
    benchmark.extra_info.update(
        {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "model": model,
            "optimizer": rule,
            "steps": finder_loops.STEPS,
            "sweeps_us": timing.quartiles_us(timing.in_turns(works, seconds, sync)),
        }
    )
    benchmark.pedantic(sweepers[finder_loops.OURS].sweep, rounds=3)
