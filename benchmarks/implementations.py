"""What is timed: the same work done by lrfast and by torch, on tensors of the same values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

import lrfast
from benchmarks.model_sets import Layers

WORKS = ("AdamW", "SGD", "whole update")
# How torch spells each of its implementations.
TORCH: dict[str, dict[str, bool]] = {
    "torch-fused": {"fused": True},
    "torch-foreach": {"foreach": True},
    "torch-forloop": {"foreach": False},
}
NAMES = ("lrfast", *TORCH)

ADAMW: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.01}
SGD = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-4}
# Far more steps than are timed: torch's scheduler raises behind the last one.
TOTAL_STEPS = 1_000_000
MAX_NORM, DECAY, SCALE = 0.1, 0.9, 1024.0

# Relative to the largest value: of weights, a fraction of what a step moves them by, and of states,
# which depend on the norm, that torch sums in single precision.
TOLERANCES = {torch.float32: (2e-6, 1e-4), torch.bfloat16: (2e-3, 1e-2)}


@dataclass
class Contender:
    """One implementation at work on tensors of its own."""

    params: list[Tensor]
    optimizer: torch.optim.Optimizer
    step: Callable[[], Any]
    refill: Callable[[], None] | None = None  # before each step, outside its time
    averages: list[Tensor] | None = None  # of the weights, where torch keeps them

    def values(self) -> dict[str, list[Tensor]]:
        """Everything that a step changes, by name, one tensor per parameter."""
        found: dict[str, list[Tensor]] = {"weight": self.params}
        for param in self.params:
            for name, value in self.optimizer.state[param].items():
                if name in ("exp_avg", "exp_avg_sq", "momentum_buffer", "ema"):
                    found.setdefault(name, []).append(value)
        if self.averages is not None:
            found["ema"] = self.averages
        return found | {"gradient": [param.grad for param in self.params if param.grad is not None]}


class Start:
    """The weights and gradients that all implementations begin with."""

    def __init__(self, layers: Layers, dtype: torch.dtype, device: str) -> None:
        shapes = [shape for layer in layers for shape in layer]
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.layers = layers
        self.weights = [torch.randn(shape, **options) for shape in shapes]
        self.grads = [torch.randn(shape, **options) for shape in shapes]

    def groups(self, per_layer: bool) -> list[dict[str, Any]]:
        """Copies of both, as one param group or as one per layer."""
        params = []
        for weight, grad in zip(self.weights, self.grads, strict=True):
            param = torch.nn.Parameter(weight.clone())
            param.grad = grad.clone()
            params.append(param)
        if not per_layer:
            return [{"params": params}]
        rest = iter(params)
        return [{"params": [next(rest) for _ in layer]} for layer in self.layers]


def contender(name: str, work: str, start: Start, per_layer: bool) -> Contender:
    """Returns an implementation, by its name, ready for its first step."""
    groups = start.groups(per_layer)
    params = [param for group in groups for param in group["params"]]
    if work == "whole update":
        return _whole_update(name, groups, params, start.grads)
    optimizers: dict[str, Any] = {
        "AdamW": (lrfast.AdamW, torch.optim.AdamW, ADAMW),
        "SGD": (lrfast.SGD, torch.optim.SGD, SGD),
    }
    ours, theirs, hypers = optimizers[work]
    optimizer = (
        ours(groups, **hypers) if name == "lrfast" else theirs(groups, **hypers, **TORCH[name])
    )
    return Contender(params, optimizer, optimizer.step)


def _whole_update(
    name: str, groups: list[dict[str, Any]], params: list[Tensor], source: list[Tensor]
) -> Contender:
    """Unscale, look for infinities, clip, AdamW, average weights, schedule, zero gradients.

    A GradScaler's part is done as it does it, without its bookkeeping: the scale stays.
    """
    grads = [param.grad for param in params if param.grad is not None]

    def refill() -> None:
        torch._foreach_copy_(grads, source)

    device = params[0].device
    found = torch.zeros((), device=device)
    if name == "lrfast":
        ours = lrfast.AdamW(
            groups,
            **ADAMW,
            max_grad_norm=MAX_NORM,
            ema_decay=DECAY,
            zero_grads=True,
            skip_nonfinite=True,
            schedule=lrfast.schedules.one_cycle(TOTAL_STEPS, momentum=(0.95, 0.85)),
        )
        ours.grad_scale = torch.full((), SCALE, device=device)  # type: ignore[attr-defined]
        ours.found_inf = found  # type: ignore[attr-defined]
        return Contender(params, ours, ours.step, refill)

    optimizer = torch.optim.AdamW(groups, **ADAMW, **TORCH[name])  # type: ignore[arg-type]
    scheduler = OneCycleLR(
        optimizer, ADAMW["lr"], TOTAL_STEPS, base_momentum=0.85, max_momentum=0.95
    )
    inverse = torch.full((), 1 / SCALE, device=device)
    averages = [param.detach().clone() for param in params]
    average = get_ema_multi_avg_fn(DECAY)
    # A GradScaler gives it to every fused optimizer, but where nothing waits, looking is faster.
    looks = device.type == "cpu" or "fused" not in TORCH[name]
    if not looks:
        optimizer.found_inf = found  # type: ignore[attr-defined]

    def step() -> None:
        found.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, inverse)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        if not (looks and found.item()):
            optimizer.step()
        average(averages, params, 0)
        scheduler.step()
        torch._foreach_zero_(grads)

    return Contender(params, optimizer, step, refill, averages)


def assert_equal_work(contenders: dict[str, Contender], start: Start, steps: int = 3) -> None:
    """Takes some steps with all, and compares all that they have changed with torch's."""
    for entry in contenders.values():
        for _ in range(steps):
            if entry.refill:
                entry.refill()
            entry.step()
    found = {name: entry.values() for name, entry in contenders.items()}
    expected = found.pop("torch-fused")
    for param, weight in zip(expected["weight"], start.weights, strict=True):
        assert not torch.equal(param, weight)
    for name, values in found.items():
        assert values.keys() == expected.keys()
        for kind, tensors in values.items():
            tolerance = TOLERANCES[start.weights[0].dtype][kind not in ("weight", "ema")]
            largest = max(float(other.detach().abs().max()) for other in expected[kind])
            for tensor, other in zip(tensors, expected[kind], strict=True):
                difference = float((tensor.detach() - other.detach()).abs().max())
                assert difference <= tolerance * largest, f"{kind} of {name}"
