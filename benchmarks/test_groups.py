"""What hundreds of param groups cost: a step with a schedule, in one group and in one per tensor.

Both update tensors of the same values at the same rates, which is checked before they are timed.
They are interleaved in one process, with torch's fused AdamW and its OneCycleLR beside them.
Quartiles of both ways of interleaving go into ``extra_info``; what pytest-benchmark itself times is
lrfast's step with all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

import lrfast
from benchmarks import implementations, model_sets, timing
from benchmarks.implementations import ADAMW, TOTAL_STEPS

GROUPS = 465  # what a detection transformer has with a rate per layer and no decay for biases
CEILING = 1.1  # of the step's time with all groups over that with one
OURS, THEIRS = "lrfast", "torch-fused"

# A weight, a bias and a norm's scale per layer, 10 million elements; or nothing but overhead.
LAYERS: dict[str, model_sets.Layers] = {
    "layers": [[(256, 256)], [(256,)], [(256,)]] * (GROUPS // 3),
    "vectors": [[(64,)]] * GROUPS,
}


def _lrfast(start: implementations.Start, per_layer: bool) -> implementations.Contender:
    groups = start.groups(per_layer)
    params = [param for group in groups for param in group["params"]]
    schedule = lrfast.schedules.one_cycle(TOTAL_STEPS, momentum=(0.95, 0.85))
    optimizer = lrfast.AdamW(groups, **ADAMW, schedule=schedule)
    return implementations.Contender(params, optimizer, optimizer.step)


def _torch(start: implementations.Start, per_layer: bool) -> implementations.Contender:
    groups = start.groups(per_layer)
    params = [param for group in groups for param in group["params"]]
    optimizer = torch.optim.AdamW(groups, **ADAMW, fused=True)
    scheduler = OneCycleLR(
        optimizer, ADAMW["lr"], TOTAL_STEPS, base_momentum=0.85, max_momentum=0.95
    )

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return implementations.Contender(params, optimizer, step)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_groups(benchmark: Any, request: pytest.FixtureRequest, device: str, layers: str) -> None:
    sync: Callable[[], None] | None = None
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        sync = torch.cuda.synchronize
    start = implementations.Start(LAYERS[layers], torch.float32, device)
    made = {OURS: _lrfast, THEIRS: _torch}
    contenders = {
        (f"{name}, {count} groups" if count > 1 else name): make(start, count > 1)
        for name, make in made.items()
        for count in (1, GROUPS)
    }
    implementations.assert_equal_work(contenders, start)
    # What takes milliseconds for nothing needs no precision.
    works = {
        name: timing.Work(entry.step, every=1 if name.startswith(OURS) else 4)
        for name, entry in contenders.items()
    }
    seconds = request.config.getoption("--seconds")
    turns = timing.quartiles_us(timing.in_turns(works, seconds, sync))
    runs = timing.quartiles_us(timing.in_runs(works, seconds, sync))
    many = f"{OURS}, {GROUPS} groups"
    benchmark.group = f"{device}: {GROUPS} groups, {layers}"
    benchmark.extra_info.update(
        {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "layers": layers,
            "groups": GROUPS,
            "ceiling": CEILING,
            "ratios": {
                "turns": turns[many][1] / turns[OURS][1],
                "runs": runs[many][1] / runs[OURS][1],
            },
            "groups_turns_us": turns,
            "groups_runs_us": runs,
        }
    )
    benchmark.pedantic(contenders[many].step, rounds=5)
