"""Everything that only a machine with a GPU can show: `make gpu-check`.

Builds the kernels in place, runs the tests marked `gpu`, the benchmarks marked `gpu`, and every
kernel once under compute-sanitizer's memcheck, racecheck and initcheck: the most valuable first,
each within its share of nine minutes, so that what a cut-off run leaves is of use. Uses the Python
that runs it, with the packages installed there, and no network.

The folder of results holds a log per step and, named by date, device and commit: the file that
belongs into benchmarks/results/, of which `python -m benchmarks.report` renders the tables;
STAMP-benchmarks.json, pytest-benchmark's own output that it comes from; and STAMP-summary.json, the
steps' outcomes.

`--dry-run` prints the steps and, on any machine, does what can be done of them: builds where torch
has CUDA and there is a toolkit, counts the tests and benchmarks, compiles the kernels alone and
runs their bodies on the host.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LEAST_SECONDS = 5  # for a step to be worth its start
NEEDED = ("torch", "numpy", "tqdm", "setuptools", "pytest")
SECONDS = 535.0  # in all; a run of nine minutes may be cut off at the end
PYTEST = [sys.executable, "-m", "pytest"]
# This machine's packages are not the pinned ones, and may warn of what the pinned ones do not.
LENIENT = ["-W", "default", "-p", "no:cacheprovider"]
SHARDS = 4  # processes that share the test files: most of a small test is the host's work
ONCE = ["tests/optim/test_gpu.py", "-k", "every_kernel_once", "-m", "gpu"]
# Of compute-sanitizer, by versions: check our kernels alone, which is what makes it bearable.
FILTERS = (["--kernel-name", "kns=lrfast"], ["--filter", "kns=lrfast"])
# Those that answer most come first; whatever else there is follows.
BENCHMARKS = (
    "speed/test_optimizer_step.py",
    "training/test_training.py",
    "speed/test_range_test.py",
)
BENCHMARK_SECONDS = "0.3"  # per case; a GPU's times vary little
# pytest ends an interrupted run with all its reports.
INTERRUPT = ["timeout", "--signal=INT", "--kill-after=20"]


@dataclass(frozen=True)
class Step:
    """One step: its share of the time, its commands, which run side by side, and what it needs."""

    name: str
    seconds: float
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)
    missing: str | None = None  # why it cannot run here


def say(text: str) -> None:
    """Prints a line at once, in order with what subprocesses print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def has(package: str) -> bool:
    """Returns whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def output_of(command: list[str]) -> str:
    """Returns what a program prints, nothing where it cannot."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(commit: str | None) -> dict[str, str]:
    """Returns what the results depend on. A copy of the tree without .git is told its commit."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    versions = re.findall(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": gpu,
        "commit": commit or output_of(["git", "rev-parse", "HEAD"]) or "unknown",
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "nvcc": versions[0] if versions else "none",
        "driver": next(iter(output_of(query).splitlines()), "none"),
        "python": sys.version.split()[0],
        "cores": str(os.cpu_count()),
    }


def stamp(facts: dict[str, str]) -> str:
    """Returns the results' name: date, device and commit, as benchmarks/results/ has them."""
    device = re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-")
    return f"{facts['date']}-{device}-{facts['commit'][:10]}"


# ---- steps -----------------------------------------------------------------------------------


def build_step(rehearse: bool, out: Path) -> Step:
    """Compiles the kernels for this machine's GPU; or for all of them, to throw away."""
    build = [sys.executable, "setup.py", "build_ext"]
    build += ["--build-lib", str(out / "lib")] if rehearse else ["--inplace", "--force"]
    env = {"LRFAST_CUDA": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if rehearse:  # for all architectures, on however few cores
        return Step("build", 3000, [build], env, lacks_toolkit())
    return Step("build", 200, [build], env)


def lacks_toolkit() -> str | None:
    """Returns what a CUDA build lacks here, in setup.py's words."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    missing: str | None = runpy.run_path(str(ROOT / "setup.py"))["missing_for_cuda"](
        torch, CUDA_HOME
    )
    return missing


def tests_step() -> Step:
    """The tests marked gpu, a few files to a process. Those that need no GPU have run elsewhere."""
    paths = (ROOT / "tests").rglob("test_*.py")
    files = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    options = ["-m", "gpu", "-q", *LENIENT, "--continue-on-collection-errors"]
    options += [] if has("pytest_benchmark") else ["-o", "addopts=-ra --strict-markers"]
    # Not by naming the files: named ones are collected even where their packages are missing.
    shards = []
    for part in range(SHARDS):
        others = [file for number, file in enumerate(files) if number % SHARDS != part]
        shards.append([*PYTEST, *options, "tests", *(f"--ignore={file}" for file in others)])
    return Step("tests", 160, shards, {"LRFAST_REQUIRE_CUDA": "1"})


def benchmarks_step(raw: Path) -> Step:
    """The benchmarks marked gpu, as one run with one file of results."""
    folder = ROOT / "benchmarks"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("test_*.py")}
    ordered = [name for name in BENCHMARKS if name in names]
    ordered += sorted(names - set(ordered))
    options = ["-m", "gpu", "-q", *LENIENT, "-o", "addopts=--strict-markers", "--benchmark-only"]
    options += ["--seconds", BENCHMARK_SECONDS, f"--benchmark-json={raw}"]
    command = [*PYTEST, *options, *(f"benchmarks/{name}" for name in ordered)]
    missing = None if has("pytest_benchmark") else "pytest-benchmark is not installed"
    return Step("benchmarks", 200, [command], missing=missing)


def sanitizer_steps() -> list[Step]:
    """Every kernel once under each tool. Without torch's cache each tensor is an allocation."""
    missing, chosen = None, list[str]()
    if shutil.which("compute-sanitizer") is None:
        missing = "no compute-sanitizer is on PATH (it comes with the CUDA toolkit)"
    else:
        for option in FILTERS:
            if subprocess.run(
                ["compute-sanitizer", *option, "true"], capture_output=True, check=False
            ).returncode in (0, 255):  # 255: nothing to check in it, but the options are understood
                chosen = option
                break
    options = ["-q", *LENIENT]
    options += [] if has("pytest_benchmark") else ["-o", "addopts=-ra --strict-markers"]
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "LRFAST_REQUIRE_CUDA": "1"}
    steps = []
    for tool, seconds in (("memcheck", 45), ("racecheck", 35), ("initcheck", 35)):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *chosen]
        steps.append(Step(tool, seconds, [[*command, *PYTEST, *ONCE, *options]], env, missing))
    return steps


def all_steps(out: Path, raw: Path, rehearse: bool) -> list[Step]:
    """Returns the steps in their order; with those that take a GPU's place where there is none."""
    steps = [build_step(rehearse, out), tests_step(), benchmarks_step(raw), *sanitizer_steps()]
    if rehearse:
        kernels = [sys.executable, "tools/check_cuda.py", "--archs", "sm_90"]
        steps.append(Step("kernels compiled", 600, [kernels]))
        steps.append(
            Step("kernels on the host", 1200, [[*PYTEST, "-q", "tests/cpp/test_cpp_programs.py"]])
        )
    return steps


# ---- running ---------------------------------------------------------------------------------


class Runner:
    """Runs steps within the time there is, and keeps their logs and outcomes in one folder."""

    def __init__(self, out: Path, facts: dict[str, str], seconds: float) -> None:
        self.out = out
        self.name = stamp(facts)
        self.summary: dict[str, Any] = {"machine": facts, "steps": {}}
        self.failed = False
        self._end = time.monotonic() + seconds

    def run(self, step: Step) -> bool:
        """Runs one step, its output to its logs, and returns whether all of it passed."""
        limit = int(min(step.seconds, self._end - time.monotonic()))
        if step.missing:
            self.note(step.name, f"not done: {step.missing}")
            return False
        if limit < LEAST_SECONDS:
            self.note(step.name, "not done: no time is left")
            return False
        say(f"\n== {step.name}, at most {limit} s")
        start = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **step.env}
        running = []
        for number, command in enumerate(step.commands):
            log = self.out / f"{step.name.replace(' ', '-')}{number or ''}.log"
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [*INTERRUPT, str(limit), *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            running.append((process, log))
        codes = [process.wait() for process, _ in running]
        tails = [tail(log) for _, log in running]
        say("\n".join(tails))
        cut_off = any(code in (124, 137) for code in codes)
        counts = total(tails)
        # 5: a process found no test among its files.
        failed = any(code not in (0, 5, 124, 137) for code in codes)
        failed |= bool(counts.get("failed", 0) or counts.get("errors", 0))
        outcome = "failed" if failed else f"cut off after {limit} s" if cut_off else "passed"
        self.failed |= failed
        self.note(step.name, outcome, time.monotonic() - start, **counts)
        return not failed and not cut_off

    def note(self, step: str, outcome: str, seconds: float = 0.0, **counts: int) -> None:
        """Records an outcome; the summary is on disk even if a later step is killed."""
        row: dict[str, Any] = {"outcome": outcome, "seconds": round(seconds, 1), **counts}
        self.summary["steps"][step] = row
        path = self.out / f"{self.name}-summary.json"
        path.write_text(json.dumps(self.summary, indent=1) + "\n")
        numbers = "".join(f", {count} {what}" for what, count in counts.items())
        say(f"== {step}: {outcome}{numbers}, {seconds:.1f} s")

    def rehearse(self, step: Step, is_run: bool) -> None:
        """Prints a step and does as much of it as this machine can."""
        say(f"\n-- {step.name}, at most {step.seconds:.0f} s")
        for command in step.commands:
            say(f"   {' '.join([*(f'{k}={v}' for k, v in step.env.items()), *command])}"[:300])
        if is_run:
            self.run(step)
            return
        asked = [collecting(command) for command in step.commands]
        texts = [
            subprocess.run(c, cwd=ROOT, capture_output=True, text=True, check=False).stdout
            for c in asked
        ]
        counted = re.compile(r"^(\d+)(?:/\d+)? tests? collected", re.MULTILINE)
        found = sum(int(number) for text in texts for number in counted.findall(text))
        self.failed |= found == 0
        self.note(step.name, "collected" if found else "failed: nothing is collected", tests=found)


def collecting(command: Sequence[str]) -> list[str]:
    """Returns the command that collects what a command would run, without the sanitizer."""
    own = list(command[command.index(PYTEST[0]) :])
    left = [word for word in own if not word.startswith("--benchmark-json") and word != "-q"]
    return [*left, "--collect-only", "-q"]


def tail(log: Path, lines: int = 12) -> str:
    """Returns the end of a log: the failures and the counts."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def total(tails: list[str]) -> dict[str, int]:
    """Returns pytest's counts, added up over its processes."""
    counts: dict[str, int] = {}
    for text in tails:
        last = text.splitlines()[-1] if text else ""
        for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last):
            name = "errors" if what.startswith("error") else what
            counts[name] = counts.get(name, 0) + int(number)
    return counts


def keep_results(raw: Path, out: Path, facts: dict[str, str]) -> str:
    """Turns what was measured into the files that benchmarks/results/ holds; says what came."""
    if not raw.exists() or not raw.read_text().strip():
        return "no benchmark has finished"
    measured = json.loads(raw.read_text())
    measured["commit_info"] = {"dirty": False, **(measured.get("commit_info") or {})}
    measured["commit_info"]["id"] = facts["commit"]
    raw.write_text(json.dumps(measured) + "\n")
    before = {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.json")}
    command = [sys.executable, "-m", "benchmarks.report", "--add", str(raw)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    new = [p for p in RESULTS.glob("*.json") if p.stat().st_mtime_ns != before.get(p)]
    for path in new:
        shutil.copy(path, out / path.name)
    # What is kept comes before the pages.
    problem = f"; {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""
    return f"{', '.join(sorted(path.name for path in new)) or 'nothing'} kept{problem}"


def check(out: Path, facts: dict[str, str], chosen: list[str], seconds: float) -> int:
    """Runs the steps and returns 1 if any failed."""
    if facts["gpu"] == "no GPU":
        raise SystemExit(f"gpu-check: torch {facts['torch']} sees no GPU; --dry-run rehearses.")
    runner = Runner(out, facts, seconds)
    raw = out / f"{stamp(facts)}-benchmarks.json"
    for step in all_steps(out, raw, rehearse=False):
        if chosen and step.name not in chosen:
            continue
        done = runner.run(step)
        if step.name == "build" and not done:
            return 1
        if step.name == "benchmarks":
            runner.note("results", keep_results(raw, out, facts))
    return int(runner.failed)


def rehearse(out: Path, facts: dict[str, str], chosen: list[str]) -> int:
    """Does what a machine without a GPU can, and returns 1 if any of it failed."""
    runner = Runner(out, facts, seconds=3600)
    for step in all_steps(out, out / "benchmarks.json", rehearse=True):
        if not chosen or step.name in chosen:
            is_run = step.name in ("build", "kernels compiled", "kernels on the host")
            runner.rehearse(step, is_run)
    return int(runner.failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or rehearses the steps and returns 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--commit", help="of the sources, where there is no .git")
    parser.add_argument("--steps", default="", help="these alone, for example build,tests")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all")
    parser.add_argument("--dry-run", action="store_true", help="print and rehearse the steps")
    given = parser.parse_args(arguments)
    missing = [name for name in NEEDED if not has(name)]
    if missing and not given.dry_run:
        raise SystemExit(f"gpu-check: {sys.executable} lacks {', '.join(missing)}.")
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = machine(given.commit)
    chosen = [name for name in given.steps.split(",") if name]
    say(f"gpu-check: {', '.join(f'{name} {value}' for name, value in facts.items())}")
    if given.dry_run:
        return rehearse(out, facts, chosen)
    return check(out, facts, chosen, given.seconds)


if __name__ == "__main__":
    sys.exit(main())
