"""docs/performance.md is what its generator makes of the rules and the committed results."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, OptimizerCase, by_name

from benchmarks.provenance import RESULTS, ROOT
from benchmarks.report import limits, predicted
from lrfast.tools.bench._contenders import bytes_moved
from tools.kernel_loops import bytes_of_element


def test_the_page_is_up_to_date() -> None:
    assert limits.PAGE.read_text() == limits.render(), "run `python -m benchmarks.report.limits`"


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_bytes_are_those_of_the_states_that_a_step_makes(case: OptimizerCase) -> None:
    """The row of the table with as many states moves what the tensors of a real step hold."""
    param = torch.nn.Parameter(torch.ones(10))
    param.grad = torch.ones(10)
    optimizer = case.ours([param], **case.options)
    optimizer.step()
    held = optimizer.state[param]
    states = frozenset(name for name, value in held.items() if value.shape == (10,))
    forms = {frozenset(form): form for form in limits._C.rule_states[case.ours._rule]}
    assert states in forms
    row = ", ".join(f"`{name}`" for name in forms[states]) or "none"
    cells = [line.split(" | ") for line in limits.rules_table().splitlines() if " | " in line]
    (found,) = [c for c in cells if c[0] == f"| {limits.NAMES[case.ours._rule]}" and c[1] == row]
    read_and_written = 2 * param.nbytes + param.grad.nbytes
    read_and_written += sum(2 * held[name].nbytes for name in states)
    assert int(found[2]) * 10 == read_and_written


def test_bytes_against_the_literature() -> None:
    """Counted by hand: SGD, one state, Adam, amsgrad; in bf16; with master-precision states."""
    assert [bytes_moved(4, 4 * n) for n in range(4)] == [12, 20, 28, 36]
    assert [bytes_moved(2, 2 * n) for n in range(4)] == [6, 10, 14, 18]
    assert bytes_moved(2, 8) == 22
    assert bytes_moved(4, 8, 4, takes_norm=True, zeroes=True) == 44
    assert limits.whole_update() == (44, 64)
    elements = [("float32", "float32", 2), ("bfloat16", "float32", 2), ("float16", "float16", 3)]
    counted = [sum(bytes_of_element("step_kernel<Adam>", *each)) for each in elements]
    assert counted == [bytes_moved(4, 8), bytes_moved(2, 8), bytes_moved(2, 6)]
    assert bytes_of_element("norm_kernel", "bfloat16", "bfloat16", 0) == (2, 0)


@pytest.mark.parametrize(
    ("model", "parameters", "tensors"), [("8B", 8_030_261_248, 291), ("70B", 70_553_706_496, 723)]
)
def test_llamas_have_their_published_sizes(model: str, parameters: int, tensors: int) -> None:
    sizes = list(limits.MODELS[model].tensors())
    assert (sum(sizes), len(sizes)) == (parameters, tensors)


def test_what_a_rank_moves() -> None:
    """28 bytes for each of 8 billion float32 parameters, an eighth of them on each of 8 ranks."""
    first = dict(zip(range(20), limits.sharded_rows("8B", 8)[0], strict=False))
    assert first[5] == f"{8_030_261_248 / 8 * 28 / 1e9:.2f}"
    assert float(first[7]) == pytest.approx(8_030_261_248 / 8 * 32 / 3.35e12 * 1e3, abs=0.01)


def test_predictions_know_the_blocks_and_chunks_of_the_kernels() -> None:
    def constant(file: str, name: str) -> int:
        (value,) = re.findall(rf"\b{name} = (\d+)\b", (ROOT / "csrc" / file).read_text())
        return int(value)

    assert constant("cuda/step_body.cuh", "kMaxThreads") == predicted.BLOCK
    assert constant("cuda/step.cu", "kBlocksPerProcessor") == predicted.PER_PROCESSOR
    assert constant("bindings/device.h", "kCudaChunk") == predicted.CHUNK
    assert constant("bindings/device.h", "kSmallCudaChunk") == predicted.SMALL_CHUNK
    factor = constant("bindings/device.h", "kSmallCudaModel")
    assert factor * predicted.CHUNK == predicted.SMALL_MODEL


GPU = predicted.Gpu("sm_90", 4e12, 100, 2e9)
LOOP = predicted.Loop(moved=28, loaded=16, in_flight=64, instructions=50)


@pytest.mark.parametrize(
    ("change", "elements", "bound", "microseconds"),
    [
        # 28 bytes of 100 million at 92 % of 4 TB/s.
        ({}, 100_000_000, "memory", 2.8e9 / 3.68e12 * 1e6),
        # 1,000 instructions of each: 100 processors issue 128 in each of 2e9 cycles.
        ({"instructions": 1000}, 100_000_000, "instructions", 1e11 / 2.56e13 * 1e6),
        # One block loads 16 bytes of 16,384 elements, 8 bytes of each thread at a time.
        ({"in_flight": 8}, 1_000_000, "loads", 16384 * 16 / (8 * 512) * 0.7),
        # 201 chunks of 200 blocks: one of them takes a second one.
        ({}, 201 * 16384, "memory", 2 * 200 * 16384 * 28 / 3.68e12 * 1e6),
    ],
)
def test_a_prediction_by_hand(
    change: dict[str, float], elements: int, bound: str, microseconds: float
) -> None:
    found = predicted.predict(GPU, dataclasses.replace(LOOP, **change), elements)
    assert found.bound == bound
    # Chunks are whole: at 100 million a little more than the elements alone.
    wanted = microseconds + 1e6 * predicted.LAUNCH
    assert 1e6 * found.seconds == pytest.approx(wanted, rel=0.002)


def result(**rows: Any) -> dict[str, Any]:
    row = {"table": "steps", "work": "AdamW", "parameters": "mlp", "groups": 1, **rows}
    return {"rows": [row, {"table": "sweeps", "model": "cnn"}]}


def test_rows_of_results() -> None:
    """Above the floor by the factor by which the time is; what has no times is left out."""
    times = {"lrfast": [1, 50.0, 60], "torch-fused": [1, 80.0, 90], limits.ROOF: [1, 10.0, 20]}
    large = result(bytes={"lrfast": 2_000_000, limits.ROOF: 500_000}, turns_us=times)
    (row,) = limits.floor_rows(large)
    assert row == ["AdamW", "mlp", "1", "turns", "2", "40", "50", "80%", "50%"]
    assert limits.overhead_rows(large) == []
    small = result(bytes={}, runs_us=times)
    (row,) = limits.overhead_rows(small)
    assert row[3] == "6" and row[5:] == ["50.0", "8,333", "13,333"]
    assert limits.floor_rows(small) == []
    other = result(bytes=large["rows"][0]["bytes"], turns_us=times, table="schedulers")
    assert limits.floor_rows(other) == []


def test_every_figure_comes_from_a_committed_file() -> None:
    page = limits.PAGE.read_text()
    linked = set(re.findall(r"\(\.\./benchmarks/results/([^)]+)\)", page))
    assert linked and linked <= {path.name for path in RESULTS.glob("*.json")}
    assert "**Computed, not measured.**" in page
