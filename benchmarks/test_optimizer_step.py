"""Time of one AdamW step against torch's three implementations, on equal work.

Every row updates the same tensors with the same hyperparameters; gradients stay in place. Compare
medians within one run only: machines and their neighbours differ.
"""

from __future__ import annotations

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


def _time_step(benchmark: Any, optimizer: torch.optim.Optimizer, device: str) -> None:
    def step() -> None:
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["torch"] = torch.__version__
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    benchmark.pedantic(step, rounds=30, iterations=3, warmup_rounds=3)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("implementation", OPTIMIZERS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_adamw_step(benchmark: Any, name: str, implementation: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shapes, count = SETS[name]
    benchmark.group = f"{device}: {name}"
    optimizer = OPTIMIZERS[implementation](_groups(shapes(), count, device))
    _time_step(benchmark, optimizer, device)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["lrfast", "torch-fused"])
def test_adamw_step_of_100m_parameters(benchmark: Any, implementation: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    benchmark.group = "cuda: one_large-1"
    optimizer = OPTIMIZERS[implementation](_groups(model_sets.one_large(), 1, "cuda"))
    benchmark.extra_info["bytes"] = 28 * 100_000_000  # reads g, p, m, v and writes p, m, v
    _time_step(benchmark, optimizer, "cuda")


@pytest.mark.gpu
def test_copy_bandwidth(benchmark: Any) -> None:
    """The roof that the 100-million-parameter step is held against."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    benchmark.group = "cuda: one_large-1"
    source = torch.randn(350_000_000, device="cuda")
    target = torch.empty_like(source)
    benchmark.extra_info["bytes"] = 2 * 4 * source.numel()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    benchmark.pedantic(copy, rounds=30, iterations=3, warmup_rounds=3)
