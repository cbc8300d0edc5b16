"""Time of one step against torch's implementations and installed peers, on equal work.

All implementations update tensors of the same values with the same hyperparameters; that they do
is checked before they are timed. They are interleaved in one process, since on a shared machine
timings made one after the other differ by more than the implementations do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.conftest import Measure
from benchmarks.speed import implementations, model_sets, timing, whole_update
from benchmarks.speed.implementations import (
    ACCESSES,
    IMPLEMENTATIONS,
    OF_PACKAGES,
    RULES,
    Contender,
    Start,
)

FLOAT, BF16 = torch.float32, torch.bfloat16
LARGE = 10_000_000  # elements that no cache holds


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    parameters: str  # a function of model_sets
    per_layer: bool  # a param group per layer, or one
    rule: str = "AdamW"
    floor: float | None = None  # what is aimed at: fastest torch / lrfast
    dtype: torch.dtype = FLOAT
    share: float | None = None  # floor of the share of the triad's bandwidth
    whole: bool = False  # the whole update, not just the rule
    compiled: bool = False  # also those that compile first
    quick: bool = False
    gpu_floor: float | None = None
    gpu_share: float | None = None  # of the copy's bandwidth

    @property
    def work(self) -> str:
        work = "whole update" if self.whole else self.rule
        rule = f" {self.rule}" if self.whole and self.rule != "AdamW" else ""
        return work + rule + (", bf16" if self.dtype == BF16 else "")

    @property
    def id(self) -> str:
        groups = "per_layer" if self.per_layer else "one_group"
        return "-".join([self.work.replace(", ", "_").replace(" ", "_"), self.parameters, groups])


def _large(rule: str, parameters: str, per_layer: bool, **more: Any) -> Case:
    return Case(parameters, per_layer, rule, 0.97, share=0.9, **more)


CASES = [
    Case("lora", False, floor=6),
    Case("lora", True, floor=15, gpu_floor=10),
    Case("mlp", False, floor=12, compiled=True),
    Case("mlp", True, floor=18, quick=True),
    Case("vectors", False, floor=60),
    Case("vectors", True, floor=150, quick=True),
    *(
        _large(rule, parameters, per_layer)
        for rule in ("AdamW", "SGD")
        for parameters in ("resnet50", "vit_small")
        for per_layer in (False, True)
    ),
    *(
        Case(parameters, True, rule)
        for rule in RULES
        if rule != "AdamW"
        for parameters in ("mlp", "vectors")
    ),
    *(Case("vit_small", True, rule) for rule in RULES if rule not in ("AdamW", "SGD")),
    Case("lora", True, "SGD"),
    Case("vit_small", False, floor=2.5, dtype=BF16),
    Case("lora", True, dtype=BF16),
    Case("vit_small", True, "SGD", dtype=BF16),
    Case("vit_small", True, "Lion", dtype=BF16),
    Case("lora", True, floor=10, whole=True),
    Case("mlp", True, whole=True, quick=True),
    Case("vectors", True, whole=True),
    Case("resnet50", True, floor=1.7, whole=True),
    Case("vit_small", True, floor=1.7, whole=True),
    Case("vit_small", False, whole=True),
    Case("vit_small", True, "SGD", whole=True),
    Case("hundred_million", False, gpu_share=0.92),
    Case("one_large", False, dtype=BF16),
    *(
        Case(parameters, True, rule, floor, share=share)
        for rule in OF_PACKAGES
        for parameters, floor, share in (
            ("lora", 6, None),
            ("resnet50", 3 if "ScheduleFree" in rule else 2.5, 0.85),
            ("vit_small", 3 if "ScheduleFree" in rule else 2.5, 0.85),
        )
    ),
]


def _participants(
    case: Case, start: Start, device: str, groups: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    if case.whole:
        make = {
            name: partial(whole_update.contender, name, case.rule, start, groups)
            for name in whole_update.NAMES
        }
    else:
        make = {
            name: partial(implementations.contender, name, case.rule, start, groups)
            for name, entry in IMPLEMENTATIONS.items()
            if entry.takes_part(case.rule, device, case.compiled)
            # One tensor that large leaves the others nothing to lose, and no memory.
            and (start.count < 10 * LARGE or name in ("lrfast", "torch-fused"))
        }
    return implementations.participants(make, start)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=[pytest.mark.quick] * case.quick) for case in CASES],
)
def test_step(measure: Measure, case: Case) -> None:
    layers = getattr(model_sets, case.parameters)()
    groups = len(layers) if case.per_layer else 1
    start = Start(layers, case.dtype, measure.device)
    contenders, refused = _participants(case, start, measure.device, groups)
    is_large = start.count > LARGE
    works = {
        name: timing.Work(
            entry.step, entry.refill, 4 if is_large and IMPLEMENTATIONS[name].slow else 1
        )
        for name, entry in contenders.items()
    }
    accesses = ACCESSES[case.rule] + whole_update.MORE_ACCESSES * case.whole
    moved = dict.fromkeys(works, accesses * case.dtype.itemsize * start.count)
    if is_large:
        # Over as much memory as gradients, weights and states occupy, and averages.
        arrays = (ACCESSES[case.rule] + 1) // 2 + case.whole
        held = arrays * case.dtype.itemsize * start.count
        more, more_moved = timing.roofs(held, measure.device)
        works |= more
        moved |= more_moved
    is_gpu = measure.device == "cuda"
    row = {
        "parameters": case.parameters,
        "elements": start.count,
        "groups": groups,
        "work": case.work,
        "floor": case.gpu_floor if is_gpu else case.floor,
        "share_floor": case.gpu_share if is_gpu else case.share,
    }
    ways = ("turns",) if is_large else ("turns", "runs")
    table = "packages" if case.rule in OF_PACKAGES else "steps"
    measure(table, row, works, ways=ways, moved=moved, clear=is_large, refused=refused)
