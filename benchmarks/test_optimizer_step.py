"""Time of one AdamW step against torch's three implementations, on equal work.

All implementations update tensors of the same shapes with the same hyperparameters, gradients in
place, and take turns step by step: on a shared machine, timings made one after the other differ by
more than the implementations do (20 % were seen). Their quartiles go into ``extra_info``; what
pytest-benchmark itself times is lrfast's step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lrfast
from benchmarks import model_sets

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "lrfast": lambda groups: lrfast.AdamW(groups, lr=1e-4, weight_decay=0.01),
    "torch-fused": lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.01, fused=True),
    "torch-foreach": lambda groups: torch.optim.AdamW(
        groups, lr=1e-4, weight_decay=0.01, foreach=True
    ),
    "torch-forloop": lambda groups: torch.optim.AdamW(
        groups, lr=1e-4, weight_decay=0.01, foreach=False
    ),
}
# (shapes, number of param groups)
SETS = {
    "lora-1": (model_sets.lora, 1),
    "lora-224": (model_sets.lora, 224),
    "mlp-1": (model_sets.mlp, 1),
    "mlp-3": (model_sets.mlp, 3),
    "vectors-1": (model_sets.vectors, 1),
    "vectors-150": (model_sets.vectors, 150),
    "vit_small-1": (model_sets.vit_small, 1),
    "vit_small-12": (model_sets.vit_small, 12),
}


def _groups(shapes: model_sets.Shapes, count: int, device: str) -> list[dict[str, Any]]:
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, device=device))
        param.grad = torch.randn(shape, device=device)
        params.append(param)
    size = -(-len(params) // count)
    return [{"params": params[i : i + size]} for i in range(0, len(params), size)]


def _take_turns(steps: dict[str, Callable[[], None]], rounds: int = 41) -> dict[str, list[float]]:
    """Quartiles of each step's time in microseconds, the steps made in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: [round(1e6 * quartile, 2) for quartile in statistics.quantiles(values, n=4)]
        for name, values in seconds.items()
    }


def _compare(
    benchmark: Any, name: str, shapes: model_sets.Shapes, count: int, device: str, *chosen: str
) -> None:
    def make_step(implementation: str) -> Callable[[], None]:
        optimizer = OPTIMIZERS[implementation](_groups(shapes, count, device))

        def step() -> None:
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        return step

    steps = {implementation: make_step(implementation) for implementation in chosen or OPTIMIZERS}
    benchmark.group = f"{device}: {name}"
    benchmark.extra_info["quartiles_us"] = _take_turns(steps)
    benchmark.extra_info["torch"] = torch.__version__
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    benchmark.pedantic(steps["lrfast"], rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adamw_step(benchmark: Any, name: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shapes, count = SETS[name]
    _compare(benchmark, name, shapes(), count, device)


@pytest.mark.gpu
def test_adamw_step_of_100m_parameters(benchmark: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    benchmark.extra_info["bytes"] = 28 * 100_000_000  # reads g, p, m, v and writes p, m, v
    shapes = model_sets.one_large()
    _compare(benchmark, "one_large-1", shapes, 1, "cuda", "lrfast", "torch-fused")


@pytest.mark.gpu
def test_copy_bandwidth(benchmark: Any) -> None:
    """The roof that the 100-million-parameter step is held against."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    benchmark.group = "cuda: copy"
    source = torch.randn(350_000_000, device="cuda")
    target = torch.empty_like(source)
    benchmark.extra_info["bytes"] = 2 * 4 * source.numel()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    benchmark.pedantic(copy, rounds=30, iterations=3, warmup_rounds=3)
