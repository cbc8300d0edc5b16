"""What `make cuda-check` reads in machine code, on code that is written here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NORM = "_ZN6lrfast4cuda11norm_kernelENS_10StepTablesE"
STEP = "_ZN11step_kernelINS_4AdamELb0EEEvNS_10StepTablesE"
UNROLLED = """
LDG.E.128 R4, desc[UR8][R2.64]
LDG.E.128 R8, desc[UR8][R2.64+0x2000]
LDG.E.128 R12, desc[UR8][R2.64+0x4000]
LDG.E.128 R16, desc[UR8][R2.64+0x6000]
FMUL R5, R5, R5
FMUL R9, R9, R9
ISETP.GE.AND P0, PT, R0, UR4, PT
BRA `(.L_x_1)
"""
ONE_BY_ONE = """
LDG.E.128 R4, desc[UR8][R2.64]
FMUL R5, R5, R5
ISETP.GE.AND P0, PT, R0, UR4, PT
BRA `(.L_x_1)
"""
WITH_A_RARE_CALL = """
LDG.E.128 R4, desc[UR8][R2.64]
LDG.E.128 R8, desc[UR8][R2.64+0x10]
LDG.E.128 R12, desc[UR8][R2.64+0x20]
LDG.E.128 R16, desc[UR8][R2.64+0x30]
MUFU.RCP R5, R6
BRA `(.L_x_2)
MOV R8, 0x10
CALL.REL.NOINC `(division)
.L_x_2:
STG.E.128 desc[UR8][R2.64], R4
STG.E.128 desc[UR8][R2.64+0x20], R12
STG.E.128 desc[UR8][R2.64+0x30], R16
BRA `(.L_x_1)
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_cuda
    import kernel_loops

    yield kernel_loops, check_cuda
    for name in ("kernel_loops", "check_cuda"):
        sys.modules.pop(name)


def printed(function: str, loop: str) -> str:
    """What nvdisasm prints of a function that is this loop."""
    lines = [f".text.{function}:", ".L_x_1:"]
    for line in loop.strip().splitlines():
        guard = "@!P0 " if line.startswith("BRA") else ""
        lines.append(line if line.startswith(".L") else f"        /*0010*/       {guard}{line} ;")
    return "\n".join(lines) + "\n"


def loops_in(kernel_loops: ModuleType, tmp_path: Path, text: str) -> list[Any]:
    """The loops that are found where nvdisasm prints this text."""
    (tmp_path / "text").write_text(text)
    fake = tmp_path / "nvdisasm"
    fake.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\n")
    fake.chmod(0o755)
    found: list[Any] = kernel_loops.element_loops(str(fake), tmp_path / "cubin")
    return found


def test_loads_at_once_and_bounds(tools: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    """An unrolled norm passes; one whose unrolling was taken out does not."""
    kernel_loops, check_cuda = tools
    (good,) = loops_in(kernel_loops, tmp_path, printed(NORM, UNROLLED))
    assert (good.loads, good.elements, good.per_element) == ((16,) * 4, 16, 0.5)
    assert check_cuda.loop_fault(good, "sm_90") == ""
    (bad,) = loops_in(kernel_loops, tmp_path, printed(NORM, ONE_BY_ONE))
    assert (bad.loads, bad.elements) == ((16,), 4)
    assert check_cuda.loop_fault(bad, "sm_90") == "1 of 4 loads at once"


def test_rare_calls_do_not_count(tools: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    kernel_loops, check_cuda = tools
    (loop,) = loops_in(kernel_loops, tmp_path, printed(STEP, WITH_A_RARE_CALL))
    assert (loop.param, loop.state, loop.states, loop.elements) == ("float32", "float32", 2, 4)
    assert loop.instructions == 10
    assert loop.loads == (16,) * 4
    assert check_cuda.loop_fault(loop, "sm_90") == ""
    # 28 bytes at 90 % of an H200's 4.8 TB/s, while 132 multiprocessors issue 128 at 1.785 GHz.
    assert check_cuda.budget(loop, "sm_90") == pytest.approx(195.5, abs=0.1)


def moving(loads: str, stores: str, *others: str) -> str:
    """A loop that loads and stores values of these widths, in this order."""
    lines = [
        f"LDG.E.{width} R{4 * i + 4}, desc[UR8][R2.64]" for i, width in enumerate(loads.split())
    ]
    lines += [*others, *(f"STG.E.{width} desc[UR8][R2.64], R4" for width in stores.split())]
    return "\n".join([*lines, "BRA `(.L_x_1)"])


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (STEP, moving("128 128", "128"), ("float32", "float32", 0, 4)),
        (STEP, moving("128 128 64", "128 64"), ("float32", "bfloat16", 1, 4)),
        (STEP, moving("64 64 128 128", "64 128 128"), ("bfloat16", "float32", 2, 4)),
        (STEP, moving("128 128 128", "128 128", "F2FP.BF16 R4"), ("bfloat16", "bfloat16", 1, 8)),
        (STEP, moving("128 128 128", "128 128", "HADD2.F32 R4"), ("float16", "float16", 1, 8)),
        (STEP, moving("64 64 64", "64 64", "DMUL R4, R6"), ("float64", "float64", 1, 1)),
        (NORM, moving("128", "", "DMUL R4, R6"), ("float64", "float64", 0, 2)),
        (STEP, moving("128 128", "128 128"), None),  # what it loads it stores: no gradient
        (STEP, moving("128 128 128", "128"), None),
        (STEP, moving("128 64", "64"), None),  # a parameter is of its gradient's type
        (STEP, moving("64 64", "128"), None),
        (STEP, moving("64 64 64", "", "DADD R4, R6"), None),  # a sum
        (STEP, moving("U16 U16", "U16"), None),  # elements behind the vectors
        (NORM, moving("64 64", "", "DADD R4, R6"), None),
        (NORM, moving("128", "64"), None),
    ],
)
def test_loops_are_told_by_what_they_move(
    tools: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    function: str,
    text: str,
    expected: tuple[str, str, int, int] | None,
) -> None:
    found = loops_in(tools[0], tmp_path, printed(function, text))
    rows = [(loop.param, loop.state, loop.states, loop.elements) for loop in found]
    assert rows == ([expected] if expected else [])


def test_generic_accesses_are_an_error(
    tools: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    """Loads and stores whose memory is looked up at run time, as the compiler was not told."""
    kernel_loops, check_cuda = tools
    for function, text, count in (
        (NORM, UNROLLED.replace("LDG", "LD"), 4),
        (NORM, UNROLLED.replace("LDG", "LD", 1), 1),
        (STEP, WITH_A_RARE_CALL.replace("STG", "ST"), 3),
    ):
        (loop,) = loops_in(kernel_loops, tmp_path, printed(function, text))
        assert check_cuda.loop_fault(loop, "sm_90") == f"{count} generic accesses"


def test_a_kernel_without_its_loops_is_an_error(
    tools: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    kernel_loops, check_cuda = tools
    loops = loops_in(kernel_loops, tmp_path, printed(NORM, UNROLLED))
    assert len(check_cuda.incomplete(loops, {NORM, STEP})) == 2
    assert check_cuda.incomplete([], {"another_kernel"}) == []
