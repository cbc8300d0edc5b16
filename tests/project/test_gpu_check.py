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


def quartiles(median: float) -> list[float]:
    return [0.5 * median, median, 3 * median]


ROWS: list[dict[str, Any]] = [
    {
        "table": "steps",
        "parameters": "hundred_million",
        "groups": 1,
        "bytes": {"lrfast": 2_800_000_000, "torch-fused": 2_800_000_000, "copy": 800_000_000},
        "counts": {"lrfast": {"launches": 1}, "torch-fused": {"launches": 3}},
        "turns_us": {
            "lrfast": quartiles(7e5),
            "torch-fused": quartiles(10.5e5),
            "copy": quartiles(2e5),
        },
        "turns_host_us": {"lrfast": quartiles(12.0)},
    },
    {
        "table": "steps",
        "bytes": {"lrfast": 5_600},
        "counts": {"lrfast": {"launches": 2}},
        "turns_us": {"lrfast": quartiles(9.0), "torch-fused": quartiles(11.0)},
        "runs_us": {"lrfast": quartiles(2.0), "torch-fused": quartiles(10.0)},
        "runs_host_us": {"lrfast": quartiles(8.0)},
    },
    {
        "table": "training",
        "bytes": {},
        "counts": {"lrfast": {"launches": 9}, "lrfast captured": {"launches": 1}},
        "runs_us": {
            "lrfast": quartiles(90.0),
            "lrfast captured": quartiles(50.0),
            "torch, as usual": quartiles(200.0),
        },
        "runs_host_us": {"lrfast captured": quartiles(4.0)},
    },
]


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
@pytest.mark.parametrize(
    "least",
    [
        {"headline": 3},
        pytest.param(
            {"hardware tests": 300, "memcheck": 10, "benchmarks": 40}, marks=pytest.mark.full
        ),
    ],
    ids=["headline", "others"],
)
def test_a_rehearsal_collects_what_a_gpu_would_run(
    least: dict[str, int], check: ModuleType, tmp_path: Path
) -> None:
    # With CUDA, the build would be minutes of compiling.
    steps = [*(["build"] if torch.version.cuda is None else []), *least]
    assert check.main(["--dry-run", "--out", str(tmp_path), "--steps", ",".join(steps)]) == 0
    (path,) = tmp_path.glob("*-summary.json")
    found = json.loads(path.read_text())["steps"]
    assert list(found) == steps
    if torch.version.cuda is None:
        assert found.pop("build")["outcome"].startswith("not done: torch ")
    assert all(row["outcome"] == "collected" for row in found.values())
    assert all(found[step]["tests"] >= count for step, count in least.items())
    assert len(check.HEADLINE) == 3 and found.get("headline", {"tests": 3})["tests"] == 3


def test_the_steps_in_order_of_value(check: ModuleType, tmp_path: Path) -> None:
    """Each test file in one process of one step; and with all shares used up, the headline is
    reached within the nine minutes, and leaves time for the rest."""
    steps = check.all_steps([tmp_path / "1.json", tmp_path / "2.json"], tmp_path, rehearse=False)
    names = ["build", "hardware tests", "memcheck", "racecheck", "initcheck"]
    names += ["headline", "tests", "benchmarks"]
    assert [step.name for step in steps] == names
    used = sum(step.seconds + check.GRACE for step in steps[:6])
    assert check.BUDGET == 540 and used <= check.BUDGET - check.RESERVE - 90
    by_name = {step.name: step for step in steps}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    taken = [word for c in by_name["hardware tests"].commands for word in c if word in files]
    assert sorted(taken) == sorted(check.HARDWARE)
    for command in by_name["tests"].commands:
        taken += files - {word.removeprefix("--ignore=") for word in command}
    assert sorted(taken) == sorted(files)
    assert len(by_name["tests"].commands) > 1
    (command,) = by_name["benchmarks"].commands
    assert [f"--deselect={name}" in command for name in check.HEADLINE] == [True] * 3
    benchmarks = [word for word in command if word.endswith(".py")]
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
        (
            ["print('=== Device not supported ===\\n1 failed in 1s'); import sys; sys.exit(1)"],
            "not done: compute-sanitizer says 'Device not supported'",
            (0, 0),
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands side by side; those that are cut off say first what they have found."""
    monkeypatch.setattr(check, "GRACE", 0)
    runner = check.Runner(tmp_path, tmp_path, FACTS, seconds=60)
    step = check.Step("some tests", 1.5 if "sleep" in scripts[0] else 30, [*map(python, scripts)])
    assert runner.run(step) == passes
    row = summary(tmp_path)["some tests"]
    assert row["outcome"] == outcome
    assert (row.get("passed", 0), row.get("failed", 0)) == counts
    assert runner.failed == (outcome == "failed")
    log = (tmp_path / f"{NAME}.log").read_text()
    assert log.count("==== some tests, process ") == len(scripts)


def test_time_that_is_up_ends_a_run_after_a_test(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by force: the test that is running ends, and the run makes its reports."""
    monkeypatch.setattr(check, "GRACE", 600)
    (tmp_path / "test_slow.py").write_text("""
import time, pytest
@pytest.mark.parametrize("number", range(60))
def test_slow(number): time.sleep(0.5)
""")
    report = tmp_path / "report.xml"
    options = ["-q", *check.LENIENT, "-c", "/dev/null", f"--junitxml={report}"]
    command = [*check.PYTEST, *options, str(tmp_path / "test_slow.py")]
    runner = check.Runner(tmp_path, tmp_path, FACTS, seconds=60)
    assert not runner.run(check.Step("slow", 6, [command]))
    row = summary(tmp_path)["slow"]
    assert row["outcome"] == "cut off after 6 s" and not runner.failed
    assert 1 <= row["passed"] < 60 and report.read_text().count("<testcase") == row["passed"]


def test_without_time_a_step_is_not_begun(check: ModuleType, tmp_path: Path) -> None:
    runner = check.Runner(tmp_path, tmp_path, FACTS, seconds=0.5)
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
    monkeypatch.setattr(check, "all_steps", lambda raws, out, rehearse: steps)
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
    scripts = []

    def steps(raws: list[Path], out: Path, rehearse: bool) -> list[Any]:
        for raw, rows in zip(raws, (ROWS[:2], ROWS[2:]), strict=True):
            measured = {"commit_info": {}, "benchmarks": [{"extra_info": row} for row in rows]}
            scripts.append(
                f"import pathlib; pathlib.Path({str(raw)!r}).write_text({json.dumps(measured)!r})"
            )
        names = ("headline", "benchmarks")
        return [check.Step(name, 30, [python(s)]) for name, s in zip(names, scripts, strict=True)]

    monkeypatch.setattr(check, "all_steps", steps)
    assert check.check(out, FACTS, [], 60) == 0
    outcome = summary(out)["results"]["outcome"]
    assert outcome == "new.json kept" + ("; ImportError: no matplotlib" if broken else "")
    assert (out / "new.json").read_text() == FACTS["commit"] and not (out / "old.json").exists()
    raw = json.loads((out / f"{NAME}-benchmarks.json").read_text())
    assert [row["extra_info"] for row in raw["benchmarks"]] == ROWS
    files = {"new.json", f"{NAME}-benchmarks.json", f"{NAME}-summary.json", f"{NAME}.log"}
    assert {path.name for path in out.iterdir()} == files


def test_figures_of_each_benchmark(check: ModuleType) -> None:
    """By hand: 2,800 bytes in 1 µs are 2.8 GB/s, and 0.7 of a copy of 800 MB in 200 ms."""
    rows = [{"extra_info": row} for row in ROWS]
    large, small, trained = check.figures({"benchmarks": rows})
    assert large == {
        "table": "steps",
        "parameters": "hundred_million",
        "groups": 1,
        "us": 700_000.0,
        "host_us": 12.0,
        "launches": 1,
        "bytes": 2_800_000_000,
        "gb_per_s": 4.0,
        "share_of_copy": 1.0,
        "over": {"torch-fused": 1.5},
    }
    assert (small["us"], small["host_us"]) == (2.0, 8.0)  # of runs, not of turns
    assert (small["gb_per_s"], small["share_of_copy"]) == (2.8, 0.7)
    assert small["over"] == {"torch-fused": 5.0} and small["launches"] == 2
    assert trained["us"] == 50.0 and trained["launches"] == 1 and "bytes" not in trained
    assert trained["over"] == {"torch, as usual": 4.0}


def test_clocks_under_load(check: ModuleType) -> None:
    samples = "1980, 2619, 400.5, 41\n1200, 2619, 300.0, 39\n1500, 2619, [N/A], 40\n19"
    samples = f"345, 2619, 80.5, 30\n{samples}"
    found = check.medians_and_maxima(samples)
    assert found["clocks.sm"] == [1200.0, 1980.0] and found["power.draw"] == [300.0, 400.5]
    assert check.medians_and_maxima("") == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(check: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"sees no GPU; --dry-run rehearses"):
        check.main(["--out", str(tmp_path)])


def test_missing_packages(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check.has
    monkeypatch.setattr(check, "has", lambda name: name != "pytest_benchmark" and real(name))
    steps = check.all_steps([tmp_path / "1", tmp_path / "2"], tmp_path, rehearse=False)
    (missing,) = {step.missing for step in steps if step.name in ("headline", "benchmarks")}
    assert missing == "pytest-benchmark is not installed"
    assert all("addopts=-ra --strict-markers" in command for command in steps[1].commands)
    monkeypatch.setattr(check, "has", lambda name: name != "setuptools")
    with pytest.raises(SystemExit, match="lacks setuptools"):
        check.main(["--out", str(tmp_path)])


def test_what_only_hardware_shows_comes_first(check: ModuleType) -> None:
    """What the table says, and what the first tests on a GPU are."""
    table = (ROOT / "tests" / "README.md").read_text().split("| only on hardware | tests |")[1]
    named = {f"tests/{file}" for file in re.findall(r"\w+/test_\w+\.py", table)}
    assert named == set(check.HARDWARE)


@pytest.mark.parametrize("number", [0, 1], ids=["claims", "hardware"])
def test_the_table_of_claims_names_tests_that_exist(number: int) -> None:
    """Each `test_name` in its file, each file in its folder."""
    tables = re.split(r"\| tests \|\n\|---\|---\|\n", (ROOT / "tests" / "README.md").read_text())
    rows = tables[1 + number].partition("\n\n")[0].splitlines()
    assert len(rows) >= (14, 9)[number]
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
