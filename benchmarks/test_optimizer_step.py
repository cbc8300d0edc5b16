"""Time of one step against torch's implementations, on equal work.

All implementations update tensors of the same values with the same hyperparameters; that they do
is checked before they are timed. They are interleaved in one process, since on a shared machine
timings made one after the other differ by more than the implementations do. Quartiles of both ways
of interleaving go into ``extra_info``; what pytest-benchmark itself times is lrfast's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import implementations, model_sets, timing

FLOAT, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    parameters: str  # a function of model_sets
    per_layer: bool  # a param group per layer, or one
    work: str
    floor: float | None = None  # fastest torch / lrfast
    names: tuple[str, ...] = implementations.NAMES
    dtype: torch.dtype = FLOAT
    bytes_moved: int = 0  # per element and step; 0: not compared with the memory's bandwidth
    bytes_held: int = 0  # per element
    share: float | None = None  # floor of the share of the triad's bandwidth

    @property
    def id(self) -> str:
        dtype = ["bf16"] if self.dtype == BF16 else []
        groups = "per_layer" if self.per_layer else "one_group"
        return "-".join([self.work.replace(" ", "_"), self.parameters, groups, *dtype])


def _large(parameters: str, per_layer: bool, work: str) -> Case:
    # Reads gradient, parameter and states, and writes all but the gradient.
    moved, held = {"AdamW": (28, 16), "SGD": (20, 12)}[work]
    return Case(parameters, per_layer, work, 0.97, bytes_moved=moved, bytes_held=held, share=0.9)


WHOLE = ("lrfast", "torch-fused", "torch-foreach")
CASES = [
    Case("lora", False, "AdamW", 6),
    Case("lora", True, "AdamW", 15),
    Case("mlp", False, "AdamW", 12),
    Case("mlp", True, "AdamW", 18),
    Case("vectors", False, "AdamW", 60),
    Case("vectors", True, "AdamW", 150),
    *(
        _large(parameters, per_layer, work)
        for work in ("AdamW", "SGD")
        for parameters in ("resnet50", "vit_small")
        for per_layer in (False, True)
    ),
    Case("vit_small", False, "AdamW", 2.5, dtype=BF16, bytes_moved=14, bytes_held=8),
    Case("lora", True, "whole update", 10, WHOLE),
    Case("resnet50", True, "whole update", 1.7, WHOLE),
    Case("vit_small", True, "whole update", 1.7, WHOLE),
    Case("scalars", False, "AdamW"),
    Case(
        "one_large",
        False,
        "AdamW",
        None,
        ("lrfast", "torch-fused"),
        BF16,
        bytes_moved=14,
        bytes_held=8,
    ),
]


def _facts(case: Case, layers: model_sets.Layers, device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": case.parameters,
        "groups": len(layers) if case.per_layer else 1,
        "work": case.work + (", bf16" if case.dtype == BF16 else ""),
        "floor": case.floor,
        "share_floor": case.share,
    }


def _works(
    case: Case, layers: model_sets.Layers, device: str
) -> tuple[timing.Works, dict[str, int]]:
    """What takes turns, and the bytes that those move whose bandwidth is of interest."""
    start = implementations.Start(layers, case.dtype, device)
    contenders = {
        name: implementations.contender(name, case.work, start, case.per_layer)
        for name in case.names
    }
    implementations.assert_equal_work(contenders, start)
    is_large = sum(weight.numel() for weight in start.weights) > 10_000_000
    works = {
        name: timing.Work(
            entry.step,
            entry.refill,
            every=4 if is_large and name in ("torch-foreach", "torch-forloop") else 1,
        )
        for name, entry in contenders.items()
    }
    if not case.bytes_moved:
        return works, {}
    count = sum(weight.numel() for weight in start.weights)
    triads = timing.triads(case.bytes_held * count, device)
    moved = dict.fromkeys(works, case.bytes_moved * count)
    return works | triads, moved | dict.fromkeys(triads, case.bytes_held * count)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_step(benchmark: Any, request: pytest.FixtureRequest, device: str, case: Case) -> None:
    sync: Callable[[], None] | None = None
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        sync = torch.cuda.synchronize
    layers = getattr(model_sets, case.parameters)()
    works, moved = _works(case, layers, device)
    seconds = request.config.getoption("--seconds")
    benchmark.group = f"{device}: {case.id}"
    benchmark.extra_info.update(_facts(case, layers, device))
    benchmark.extra_info["bytes"] = moved
    benchmark.extra_info["turns_us"] = timing.quartiles_us(timing.in_turns(works, seconds, sync))
    benchmark.extra_info["runs_us"] = timing.quartiles_us(timing.in_runs(works, seconds, sync))
    ours = works["lrfast"]

    def step() -> None:
        ours.step()
        if sync is not None:
            sync()

    benchmark.pedantic(step, setup=ours.prepare, rounds=5)
