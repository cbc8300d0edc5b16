"""How the cost of a step grows: with tensors, param groups, parameters and threads."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from benchmarks.conftest import Measure
from benchmarks.speed import implementations, model_sets, timing
from benchmarks.speed.implementations import ACCESSES, Start
from benchmarks.speed.model_sets import Layers

SMALL, GROUPED = 16, 1000  # elements per tensor; tensors that are dealt out to groups
LARGE = 10_000_000  # elements


@dataclass(frozen=True)
class Case:
    """One point of a line: so many of what the axis counts, everything else the same."""

    axis: str
    count: int
    layers: Layers
    groups: int = 1
    names: tuple[str, ...] = ("lrfast", "torch-fused", "torch-foreach")


_TWO = ("lrfast", "torch-fused")
CASES = [
    *(Case("tensors", n, [[(SMALL,)]] * n) for n in (1, 10, 100, 1000, 10_000, 30_000)),
    *(Case("groups", n, [[(SMALL,)]] * GROUPED, n) for n in (1, 10, 100, 1000)),
    # foreach would take 20 bytes per parameter more.
    *(
        Case("parameters", n, [[(n,)]], names=_TWO)
        for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000, 200_000_000)
    ),
]
THREADED = ("vectors", "lora", "vit_small")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=f"{case.axis}-{case.count}", marks=[pytest.mark.quick] * (case.count == 1000)
        )
        for case in CASES
    ],
)
def test_scaling(measure: Measure, case: Case) -> None:
    start = Start(case.layers, torch.float32, measure.device)
    contenders = {
        name: implementations.contender(name, "AdamW", start, case.groups) for name in case.names
    }
    implementations.assert_equal_work(contenders, start)
    works = {name: timing.Work(entry.step) for name, entry in contenders.items()}
    moved = dict.fromkeys(works, 4 * ACCESSES["AdamW"] * start.count)
    row = {"axis": case.axis, "count": case.count}
    way = "turns" if start.count > LARGE or len(case.layers) > GROUPED else "runs"
    measure("scaling", row, works, ways=(way,), moved=moved, clear=start.count > LARGE)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("parameters", THREADED)
def test_threads(measure: Measure, parameters: str, threads: int) -> None:
    if measure.device == "cuda":
        pytest.skip("threads are the CPU's")
    torch.set_num_threads(threads)  # put back by the fixture that all tests begin with
    start = Start(getattr(model_sets, parameters)(), torch.float32, measure.device)
    contenders = {name: implementations.contender(name, "AdamW", start, 1) for name in _TWO}
    implementations.assert_equal_work(contenders, start)
    works = {name: timing.Work(entry.step) for name, entry in contenders.items()}
    moved = dict.fromkeys(works, 4 * ACCESSES["AdamW"] * start.count)
    row = {"axis": f"threads, {parameters}", "count": threads}
    measure("scaling", row, works, ways=("runs",), moved=moved)
