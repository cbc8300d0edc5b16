"""tools/compile_in.py: what it says of pip's and the compiler's output, and of silence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from page_tool import load_tool

SAID = """
Collecting torch
  Downloading torch-2.13.0-cp311.whl (198.1 MB)
Installing collected packages: a, b, c
  [2/6] c++ -MMD -c /here/csrc/cpu/step.cpp -o step.o
csrc/cpu/step.cpp:3:1: error: 'x' was not declared
ERROR: Failed building editable for lrfast
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = load_tool("compile_in")
    monkeypatch.setattr(tool, "LOG", tmp_path / "compile.log")
    return tool


def test_a_line_for_each_package_file_and_silence(
    tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "SILENCE_S", 0.01)
    script = f"import sys, time; sys.stderr.write({SAID!r}); time.sleep(0.5); sys.exit(3)"
    lines: list[str] = []
    assert tool.run([sys.executable, "-c", script], tmp_path, lines) == 3
    said = capsys.readouterr().out.splitlines()
    assert "".join(lines) == SAID == (tmp_path / "compile.log").read_text()
    assert [line for line in said if not line.endswith(" s")] == [
        "  Downloading torch-2.13.0-cp311.whl (198.1 MB)",
        "  Installing collected packages",
        "  [2/6] cpu/step.cpp",
    ]
    assert said.count("  0 s") > 1


def test_a_failure_is_the_compiler_s_reason_or_pip_s(tool) -> None:
    lines = SAID.splitlines(keepends=True)
    assert tool.reasons(lines) == ["csrc/cpu/step.cpp:3:1: error: 'x' was not declared"]
    assert tool.reasons(lines[:-2] + lines[-1:]) == ["ERROR: Failed building editable for lrfast"]
    assert tool.reasons(lines[:4]) == [line.rstrip() for line in lines[:4]]
    assert tool.reasons(["lrfast: no C++ compiler\n", *lines[-1:]]) == ["lrfast: no C++ compiler"]
