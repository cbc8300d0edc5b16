"""What `make cuda-check` reads in machine code, on code that is written here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NORM = "_ZN6lrfast4cuda11norm_kernelENS_10StepTablesE"
STEP = "_ZN11step_kernelINS_4AdamELb0EEEvNS_10StepTablesE"
UNROLLED = """
LD.E.128 R4, desc[UR8][R2.64]
LD.E.128 R8, desc[UR8][R2.64+0x2000]
LD.E.128 R12, desc[UR8][R2.64+0x4000]
LD.E.128 R16, desc[UR8][R2.64+0x6000]
FMUL R5, R5, R5
FMUL R9, R9, R9
ISETP.GE.AND P0, PT, R0, UR4, PT
BRA `(.L_x_1)
"""
ONE_BY_ONE = """
LD.E.128 R4, desc[UR8][R2.64]
FMUL R5, R5, R5
ISETP.GE.AND P0, PT, R0, UR4, PT
BRA `(.L_x_1)
"""
WITH_A_RARE_CALL = """
LD.E.128 R4, desc[UR8][R2.64]
LD.E.128 R8, desc[UR8][R2.64+0x10]
LDG.E.128 R12, desc[UR8][R2.64+0x20]
LD.E.128 R16, desc[UR8][R2.64+0x30]
MUFU.RCP R5, R6
BRA `(.L_x_2)
MOV R8, 0x10
CALL.REL.NOINC `(division)
.L_x_2:
ST.E.128 desc[UR8][R2.64], R4
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


def loops_in(kernel_loops: ModuleType, tmp_path: Path, text: str) -> list[object]:
    """The loops that are found where nvdisasm prints this text."""
    (tmp_path / "text").write_text(text)
    fake = tmp_path / "nvdisasm"
    fake.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\n")
    fake.chmod(0o755)
    found: list[object] = kernel_loops.element_loops(str(fake), tmp_path / "cubin")
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
    assert loop.instructions == 8
    assert loop.loads == (16,) * 4
    assert check_cuda.loop_fault(loop, "sm_90") == ""
    # 28 bytes at 90 % of an H200's 4.8 TB/s, while 132 multiprocessors issue 128 at 1.785 GHz.
    assert check_cuda.budget(loop, "sm_90") == pytest.approx(195.5, abs=0.1)


def test_a_kernel_without_its_loops_is_an_error(
    tools: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    kernel_loops, check_cuda = tools
    loops = loops_in(kernel_loops, tmp_path, printed(NORM, UNROLLED))
    assert len(check_cuda.incomplete(loops, {NORM, STEP})) == 2
    assert check_cuda.incomplete([], {"another_kernel"}) == []
