"""tools/gpu_check.py as far as a machine without a GPU can tell: plan, time, outcomes, results."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FACTS = {"date": "2026-11-27", "gpu": "NVIDIA H200 NVL", "commit": "0123456789abcdef", "torch": "2"}
NAME = "2026-11-27-nvidia-h200-nvl-0123456789"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LEAST_SECONDS", 1)
    return module


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def summary(out: Path) -> Any:
    return json.loads((out / f"{NAME}-summary.json").read_text())["steps"]


@pytest.mark.usefixtures("benchmarks_run")
def test_a_rehearsal_collects_what_a_gpu_would_run(check: ModuleType, tmp_path: Path) -> None:
    steps = "build,benchmarks,memcheck"
    assert check.main(["--dry-run", "--out", str(tmp_path), "--steps", steps]) == 0
    (path,) = tmp_path.glob("*-summary.json")
    found = json.loads(path.read_text())["steps"]
    assert list(found) == ["build", "benchmarks", "memcheck"]
    if torch.version.cuda is None:
        assert found["build"]["outcome"].startswith("not done: torch ")
    for name, least in (("benchmarks", 10), ("memcheck", 10)):
        assert found[name]["outcome"] == "collected" and found[name]["tests"] >= least


def test_the_steps_fit_into_nine_minutes(check: ModuleType, tmp_path: Path) -> None:
    steps = check.all_steps(tmp_path, tmp_path / "raw.json", rehearse=False)
    names = ["build", "tests", "benchmarks", "memcheck", "racecheck", "initcheck"]
    assert [step.name for step in steps] == names
    assert check.SECONDS < 540
    paths = (ROOT / "tests").rglob("test_*.py")
    files = {f"--ignore={path.relative_to(ROOT).as_posix()}" for path in paths}
    taken = [files - set(command) for command in steps[1].commands]
    assert set.union(*taken) == files and sum(map(len, taken)) == len(files)
    assert len(steps[1].commands) > 1
    benchmarks = [word for word in steps[2].commands[0] if word.endswith(".py")]
    assert len(benchmarks) == len(list((ROOT / "benchmarks").rglob("test_*.py")))
    assert benchmarks[0] == "benchmarks/speed/test_optimizer_step.py"


@pytest.mark.parametrize(
    ("scripts", "outcome", "counts", "passes"),
    [
        (["print('3 passed in 1s')", "print('4 passed, 2 skipped in 1s')"], "passed", (7, 0), True),
        (["print('3 passed')", "import sys; sys.exit(1)"], "failed", (3, 0), False),
        (["print('nothing'); import sys; sys.exit(5)"], "passed", (0, 0), True),
        (["import time; time.sleep(30)"], "cut off after 1 s", (0, 0), False),
        (
            [
                "import time\ntry: time.sleep(30)\n"
                "except KeyboardInterrupt: print('1 failed, 2 passed in 9s')"
            ],
            "failed",
            (2, 1),
            False,
        ),
    ],
)
def test_outcomes(
    scripts: list[str],
    outcome: str,
    counts: tuple[int, int],
    passes: bool,
    check: ModuleType,
    tmp_path: Path,
) -> None:
    """Commands side by side; those that are cut off say first what they have found."""
    runner = check.Runner(tmp_path, FACTS, seconds=60)
    step = check.Step("some tests", 1.5 if "sleep" in scripts[0] else 30, [*map(python, scripts)])
    assert runner.run(step) == passes
    row = summary(tmp_path)["some tests"]
    assert row["outcome"] == outcome
    assert (row.get("passed", 0), row.get("failed", 0)) == counts
    assert runner.failed == (outcome == "failed")
    assert len(list(tmp_path.glob("some-tests*.log"))) == len(scripts)


def test_without_time_a_step_is_not_begun(check: ModuleType, tmp_path: Path) -> None:
    runner = check.Runner(tmp_path, FACTS, seconds=0.5)
    assert not runner.run(check.Step("tests", 30, [python("raise SystemExit(1)")]))
    assert summary(tmp_path)["tests"]["outcome"] == "not done: no time is left"
    assert not runner.failed


def test_no_kernels_no_tests(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        check.Step("build", 30, [python("import sys; sys.exit(2)")]),
        check.Step("tests", 30, [python("")]),
    ]
    monkeypatch.setattr(check, "all_steps", lambda out, raw, rehearse: steps)
    assert check.check(tmp_path, FACTS, [], 60) == 1
    assert list(summary(tmp_path)) == ["build"]
    assert check.check(tmp_path, FACTS, ["tests"], 60) == 0


@pytest.mark.parametrize("broken", [False, True])
def test_results_that_can_be_committed(
    broken: bool, check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the report's own command, with the commit, whatever becomes of its plots."""
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    out.mkdir()
    (results / "old.json").write_text("{}")
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "report.py").write_text(f"""
import json, pathlib, sys
commit = json.loads(pathlib.Path(sys.argv[2]).read_text())["commit_info"]["id"]
pathlib.Path({str(results)!r}, "new.json").write_text(commit)
if {broken}:
    raise ImportError("no matplotlib")
""")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "RESULTS", results)
    raw = out / f"{NAME}-benchmarks.json"
    script = f"import pathlib; pathlib.Path({str(raw)!r}).write_text('{{\"commit_info\": {{}}}}')"
    steps = [check.Step("benchmarks", 30, [python(script)])]
    monkeypatch.setattr(check, "all_steps", lambda out, raw, rehearse: steps)
    assert check.check(out, FACTS, [], 60) == 0
    outcome = summary(out)["results"]["outcome"]
    assert outcome == "new.json kept" + ("; ImportError: no matplotlib" if broken else "")
    assert (out / "new.json").read_text() == FACTS["commit"] and not (out / "old.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(check: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"sees no GPU; --dry-run rehearses"):
        check.main(["--out", str(tmp_path)])


def test_missing_packages(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check.has
    monkeypatch.setattr(check, "has", lambda name: name != "pytest_benchmark" and real(name))
    steps = check.all_steps(tmp_path, tmp_path / "raw.json", rehearse=False)
    assert steps[2].missing == "pytest-benchmark is not installed"
    assert all("addopts=-ra --strict-markers" in command for command in steps[1].commands)
    monkeypatch.setattr(check, "has", lambda name: name != "setuptools")
    with pytest.raises(SystemExit, match="lacks setuptools"):
        check.main(["--out", str(tmp_path)])


def test_the_table_of_claims_names_tests_that_exist() -> None:
    """Each `test_name` in its file, each file in its folder."""
    rows = (ROOT / "tests" / "README.md").read_text().split("|---|---|")[1].splitlines()
    assert len([row for row in rows if row]) >= 14
    for row in rows:
        file = ""
        for token in re.findall(r"(?:\w+/)?test_\w+(?:\.py|\.cpp)?", row):
            if token.endswith((".py", ".cpp")):
                file = (ROOT / "tests" / token).read_text()
                assert "gpu" in file or "device" in file or token.endswith(".cpp"), token
            else:
                assert f"def {token}(" in file, token


@pytest.mark.full
def test_files_that_need_a_missing_package_are_left_out_alone() -> None:
    script = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "hypothesis" else real(name, *rest)
import pytest
files = ["tests/suggest"]
sys.exit(pytest.main(["--collect-only", "-q", *files]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "suggest/test_typical_rates.py::" in done.stdout, done.stdout + done.stderr
    assert "suggest/test_suggest.py::" not in done.stdout
    assert "without hypothesis, so without " in done.stdout
