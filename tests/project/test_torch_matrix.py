"""tools/torch_matrix.py without its downloads: each version's row, and the versions named."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lrfast.tools import doctor
from tools import torch_matrix

ROOT = Path(__file__).parents[2]
TESTED = "FAILED tests/a.py::test_b[1] - boom\n2 failed, 30 passed, 4 skipped, 1 error in 9.1s\n"
Steps = dict[str, str | None]  # what each step prints; None: it fails


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str, dict[str, str]]]]:
    """Plays the steps of every version, and keeps which ones there were."""

    def play(printed: dict[str, Steps]) -> list[tuple[str, str, dict[str, str]]]:
        taken = []

        def run(self: Any, step: str, command: Sequence[str | Path], **env: str) -> str:
            taken.append((self.torch, step, env))
            text = printed[self.torch].get(step, "")
            if text is None:
                raise torch_matrix.StepError(f"{step} failed", TESTED if step == "tests" else "")
            return text

        monkeypatch.setattr(torch_matrix.Version, "run", run)
        monkeypatch.setattr(torch_matrix, "copy_tree", lambda target: target.mkdir())
        monkeypatch.delenv("LRFAST_CUDA", raising=False)
        return taken

    return play


GOOD: Steps = {"facts": "2.14.1+cu130 13.0\n", "tests": "..\n50 passed, 2 skipped in 3.2s\n"}
# As torch 2.15 has nanobind print.
MORE = 'nanobind: leaked 3 functions!\n - leaked function "f"\n'


def rows(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_a_row_of_each_version(
    steps: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails changes the exit status, and does not keep the next one from its turn."""
    bad = GOOD | {"facts": "2.15.0 none\n", "tests": None}
    noisy = GOOD | {"tests": f"{GOOD['tests']}{MORE}"}
    taken = steps({"2.15.0": bad, "2.14.1": noisy, "2.12.1": GOOD | {"build": None}})
    options = ["--folder", str(tmp_path), "--versions"]
    assert torch_matrix.main([*options, "2.15.0", "2.14.1", "2.12.1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("torch  "))
    table = [re.split(r"  +", line) for line in lines[header:]]
    assert table[0] == list(torch_matrix.HEADER)
    assert table[1] == ["2.15.0", "none", "no", "tests failed", "30", "3", "4", "0"]
    assert table[2] == ["2.14.1+cu130", "13.0", "no", "passed", "50", "0", "2", "0"]
    assert table[3][3:] == ["build failed", "0", "0", "0", "0"]
    assert lines[header + 4] == "torch 2.15.0: tests/a.py::test_b[1]"
    assert [row["outcome"] for row in rows(tmp_path)] == ["tests failed", "passed", "build failed"]
    names = [step for version, step, _ in taken if version == "2.12.1"]
    assert names[:2] == ["environment", "torch"] and names[-1] == "build"
    builds = [env for _, step, env in taken if step == "build"]
    assert builds == [{"LRFAST_CUDA": "0", "LRFAST_WERROR": "1"}] * 3
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_all_pass(steps: Callable[..., Any], tmp_path: Path) -> None:
    steps({"2.14.1": GOOD})
    options = ["--folder", str(tmp_path), "--versions", "2.14.1"]
    assert torch_matrix.main([*options, "--keep", "--", "-k", "name"]) == 0
    assert (tmp_path / "2.14.1" / "tree").is_dir()


def test_no_test_is_no_success(steps: Callable[..., Any], tmp_path: Path) -> None:
    steps({"2.14.1": GOOD | {"tests": "7 skipped, 1 warning in 1.0s\n"}})
    assert torch_matrix.main(["--folder", str(tmp_path), "--versions", "2.14.1"]) == 1
    (row,) = rows(tmp_path)
    assert row["outcome"] == "no test ran" and row["counts"] == {"skipped": 7, "warnings": 1}


def test_a_step_that_fails_leaves_its_log(tmp_path: Path) -> None:
    version = torch_matrix.Version("2.14.1", tmp_path)
    script = "import os; print(os.environ['LRFAST_X'], os.environ['PYTHONPATH']); 1 / 0"
    with pytest.raises(torch_matrix.StepError, match="some step failed") as raised:
        version.run("some step", [sys.executable, "-c", script], LRFAST_X="given")
    log = (tmp_path / "2.14.1-some-step.log").read_text()
    assert log == raised.value.args[1] and log.startswith("given \n")
    assert "ZeroDivisionError" in log


@pytest.mark.parametrize(
    ("package", "file"), [("torch", "dev.txt"), ("torchvision", "integrations.txt")]
)
def test_the_pinned_torch_is_left_out(package: str, file: str) -> None:
    text = (ROOT / "requirements" / file).read_text()
    others = torch_matrix.without(package, text)
    gone = set(text.splitlines()) - set(others.splitlines())
    assert gone == {line for line in text.splitlines() if line.startswith(f"{package}==")} != set()
    with pytest.raises(ValueError, match=f"pin {package} once, got 0 lines"):
        torch_matrix.without(package, others)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_copy_is_what_git_would_take(tmp_path: Path) -> None:
    torch_matrix.copy_tree(tmp_path)
    assert (tmp_path / "setup.py").read_bytes() == (ROOT / "setup.py").read_bytes()
    assert not list(tmp_path.rglob("*.so")) and not (tmp_path / "build").exists()
    assert all((tmp_path / path).exists() for path in torch_matrix.UNAFFECTED)


def test_the_versions_named_are_the_versions_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    minors = sorted({tuple(map(int, v.split(".")[:2])) for v in torch_matrix.VERSIONS})
    assert minors == [(2, minor) for minor in range(minors[0][1], minors[-1][1] + 1)]
    assert [minors[0], minors[-1]] == [doctor.OLDEST_TORCH, doctor.NEWEST_TORCH]
    oldest, newest = (".".join(map(str, each)) for each in (minors[0], minors[-1]))
    for page in ("README.md", "docs/quickstart.md", "docs/troubleshooting.md", "CONTRIBUTING.md"):
        assert f"torch {oldest} to {newest}" in (ROOT / page).read_text(), page
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text()
    setup = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setattr(torch, "__version__", "2.10.2")
    with pytest.raises(RuntimeError, match=f"runs with torch {oldest} to {newest}, got torch 2.10"):
        setup["import_torch"]()


def test_a_quick_run_takes_the_first_case_of_each_test(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text("""
import pytest
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.full), 1, 2])
def test_number(number): assert number == 1
class TestOther:
    def test_number(self): pass
""")
    options = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not full"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "torch_matrix", str(tmp_path)]
    version = torch_matrix.Version("2.14.1", tmp_path)
    text = version.run("tests", command, PYTHONPATH=str(ROOT / "tools"))
    assert torch_matrix.counts_in(text)["passed"] == 2
