"""Everything that only a machine with a GPU can show: `make gpu-check`.

In order of value, within `--budget` seconds: builds the kernels in place; runs the tests of what
the simulator does not show; runs every kernel once under compute-sanitizer's memcheck, racecheck
and initcheck; times the headline rows; then runs the other tests and benchmarks marked `gpu`. Each
step has a share of the time, and what an earlier one leaves is the last one's. When its time is up
a step ends after the test that is running. Uses the Python that runs it, with the packages
installed there, and no network.

The folder of results holds few files, named by date, device and commit: the one that belongs into
benchmarks/results/, of which `python -m benchmarks.report` renders the tables;
STAMP-benchmarks.json, pytest-benchmark's own output that it comes from; STAMP.log, what all steps
printed; and STAMP-summary.json, rewritten after each step: the GPU, its driver and limits, clocks
under load, the commit, the steps' outcomes, and of each benchmark the time, launches, bytes and
share of the copy bandwidth.

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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LEAST_SECONDS = 5  # for a step to be worth its start
NEEDED = ("torch", "numpy", "tqdm", "setuptools", "pytest")
BUDGET = 540.0  # seconds in all
RESERVE = 20.0  # of them for what comes after the last step, and for a test that does not end
PYTEST = [sys.executable, "-m", "pytest"]
# This machine's packages are not the pinned ones, and may warn of what the pinned ones do not.
LENIENT = ["-W", "default", "-p", "no:cacheprovider", "-p", "gpu_check"]
SHARDS = 4  # processes that share the test files: most of a small test is the host's work
# What the simulator does not show (tests/README.md), dealt out to the processes in this order.
HARDWARE = (
    "tests/optim/test_gpu.py",  # launches as profiled, waits, streams at once, 2^31 elements
    "tests/optim/test_step.py",  # what nvcc makes of each rule and dtype
    "tests/training/test_capture.py",  # the driver's rules of capture, Philox's numbers
    "tests/training/test_capture_on_gpus.py",
    "tests/optim/test_streams.py",
    "tests/training/test_queued_copies.py",
    "tests/training/test_captured_trainings.py",  # autograd's thread
    "tests/finetune/test_no_synchronisation_in_stages.py",
)
ONCE = ["tests/optim/test_gpu.py", "-k", "every_kernel_once", "-m", "gpu"]
UNSUPPORTED = "Device not supported"  # what compute-sanitizer says in some virtual machines
# Of compute-sanitizer, by versions: check our kernels alone, which is what makes it bearable.
FILTERS = (["--kernel-name", "kns=lrfast"], ["--filter", "kns=lrfast"])
STEPS, TRAINING = "speed/test_optimizer_step.py", "training/test_training.py"
# AdamW over 100 million parameters, against a copy and torch's fused one; AdamW with 224 groups;
# training in small batches, captured.
HEADLINE = (
    f"benchmarks/{STEPS}::test_step[cuda-AdamW-hundred_million-one_group]",
    f"benchmarks/{STEPS}::test_step[cuda-AdamW-lora-per_layer]",
    f"benchmarks/{TRAINING}::test_training[cuda-cnn-2]",
)
# Of the others, those that answer most come first.
BENCHMARKS = (STEPS, TRAINING, "speed/test_range_test.py")
BENCHMARK_SECONDS = "0.3"  # per case; a GPU's times vary little
TIME_IS_UP = "the time is up"
# Seconds after a step's deadline that end what did not end by itself. pytest still makes reports.
GRACE = 8
INTERRUPT = ["timeout", "--signal=INT", "--kill-after=5"]
LIMITS = ("driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory")
CASE = ("table", "work", "parameters", "elements", "groups", "model", "batch")
UNDER_LOAD = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class Step:
    """One step: its share of the time, its commands, which run side by side, and what it needs."""

    name: str
    seconds: float
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)
    missing: str | None = None  # why it cannot run here


def pytest_runtest_teardown(item: Any) -> None:
    """Lets no other test begin once the step's time is up: this file is a plugin of its runs."""
    if time.time() > float(os.environ.get("LRFAST_DEADLINE", "inf")):
        item.session.shouldstop = TIME_IS_UP


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
    values = next(iter(output_of(smi(LIMITS)).splitlines()), "").split(", ")
    limits = dict(zip(LIMITS, values, strict=False)) if len(values) == len(LIMITS) else {}
    versions = re.findall(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": gpu,
        "commit": commit or output_of(["git", "rev-parse", "HEAD"]) or "unknown",
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "nvcc": versions[0] if versions else "none",
        "driver": limits.pop("driver_version", "none"),
        "python": sys.version.split()[0],
        "cores": str(os.cpu_count()),
        **limits,
    }


def smi(facts: Sequence[str], *options: str) -> list[str]:
    """Returns the command that asks the driver for facts about the first GPU."""
    return [
        "nvidia-smi",
        "-i",
        "0",
        f"--query-gpu={','.join(facts)}",
        "--format=csv,noheader,nounits",
        *options,
    ]


@contextmanager
def clocks_under_load(log: Path, found: dict[str, Any]) -> Iterator[None]:
    """Samples the GPU's clocks, power and temperature meanwhile; median and maximum of each."""
    try:
        with log.open("w") as sink:
            sampler = subprocess.Popen(
                smi(UNDER_LOAD, "-lms", "200"), stdout=sink, stderr=subprocess.DEVNULL
            )
    except OSError:  # no driver's tool
        yield
        return
    try:
        yield
    finally:
        sampler.terminate()
        sampler.wait()
        found |= medians_and_maxima(log.read_text())


def medians_and_maxima(samples: str) -> dict[str, list[float]]:
    """Returns both of each fact in lines of samples."""
    rows = []
    for line in samples.splitlines():
        try:
            rows.append([float(value) for value in line.split(",")])
        except ValueError:  # "[N/A]", or a line that was cut off
            continue
    columns = zip(*(row for row in rows if len(row) == len(UNDER_LOAD)), strict=True)
    both = [[statistics.median(column), max(column)] for column in columns]
    return dict(zip(UNDER_LOAD, both, strict=False))


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
    return Step("build", 150, [build], env)


def lacks_toolkit() -> str | None:
    """Returns what a CUDA build lacks here, in setup.py's words."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    missing: str | None = runpy.run_path(str(ROOT / "setup.py"))["missing_for_cuda"](
        torch, CUDA_HOME
    )
    return missing


def tests_options() -> list[str]:
    """Options of every run of tests."""
    options = ["-m", "gpu", "-q", *LENIENT, "--continue-on-collection-errors"]
    return options + ([] if has("pytest_benchmark") else ["-o", "addopts=-ra --strict-markers"])


def hardware_step() -> Step:
    """The tests of what the simulator does not show, a few files to a process."""
    shards = [[*PYTEST, *tests_options(), *HARDWARE[part::SHARDS]] for part in range(SHARDS)]
    return Step("hardware tests", 70, shards, {"LRFAST_REQUIRE_CUDA": "1"})


def tests_step() -> Step:
    """The other tests marked gpu. Those that need no GPU have run elsewhere."""
    paths = (ROOT / "tests").rglob("test_*.py")
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    files = sorted(names - set(HARDWARE))
    # Not by naming the files: named ones are collected even where their packages are missing.
    shards = []
    for part in range(SHARDS):
        others = names - set(files[part::SHARDS])
        ignored = [f"--ignore={file}" for file in sorted(others)]
        shards.append([*PYTEST, *tests_options(), "tests", *ignored])
    return Step("tests", 110, shards, {"LRFAST_REQUIRE_CUDA": "1"})


def benchmark_options(raw: Path) -> list[str]:
    """Options of every run of benchmarks."""
    options = ["-m", "gpu", "-q", *LENIENT, "-o", "addopts=--strict-markers", "--benchmark-only"]
    return [*options, "--seconds", BENCHMARK_SECONDS, f"--benchmark-json={raw}"]


def benchmark_steps(raws: Sequence[Path]) -> tuple[Step, Step]:
    """The headline rows, and the other benchmarks marked gpu, each with one file of results."""
    folder = ROOT / "benchmarks"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("test_*.py")}
    ordered = [name for name in BENCHMARKS if name in names]
    ordered += sorted(names - set(ordered))
    missing = None if has("pytest_benchmark") else "pytest-benchmark is not installed"
    first, rest = ([*PYTEST, *benchmark_options(raw)] for raw in raws)
    first += HEADLINE
    rest += [f"--deselect={name}" for name in HEADLINE]
    rest += [f"benchmarks/{name}" for name in ordered]
    return (
        Step("headline", 50, [first], missing=missing),
        Step("benchmarks", BUDGET, [rest], missing=missing),
    )


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
    for tool, seconds in (("memcheck", 40), ("racecheck", 30), ("initcheck", 30)):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *chosen]
        steps.append(Step(tool, seconds, [[*command, *PYTEST, *ONCE, *options]], env, missing))
    return steps


def all_steps(raws: Sequence[Path], out: Path, rehearse: bool) -> list[Step]:
    """Returns the steps in their order; with those that take a GPU's place where there is none."""
    headline, benchmarks = benchmark_steps(raws)
    steps = [build_step(rehearse, out), hardware_step(), *sanitizer_steps()]
    steps += [headline, tests_step(), benchmarks]
    if rehearse:
        kernels = [sys.executable, "tools/check_cuda.py", "--archs", "sm_90"]
        steps.append(Step("kernels compiled", 600, [kernels]))
        steps.append(
            Step("kernels on the host", 1200, [[*PYTEST, "-q", "tests/cpp/test_cpp_programs.py"]])
        )
    return steps


# ---- running ---------------------------------------------------------------------------------


class Runner:
    """Runs steps within the time there is, and keeps one log and the outcomes in a folder."""

    def __init__(self, out: Path, scratch: Path, facts: dict[str, str], seconds: float) -> None:
        self.out, self.scratch = out, scratch
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
        environment = surroundings() | step.env | {"LRFAST_DEADLINE": str(time.time() + limit)}
        running = []
        for number, command in enumerate(step.commands):
            log = self.scratch / f"{number}.log"
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [*INTERRUPT, str(limit + GRACE), *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            running.append((process, log))
        codes = [process.wait() for process, _ in running]
        texts = [log.read_text(errors="replace") for _, log in running]
        with (self.out / f"{self.name}.log").open("a") as whole:
            for (_, log), text in zip(running, texts, strict=True):
                whole.write(f"==== {step.name}, process {log.stem}\n{text}\n")
        tails = [tail(text) for text in texts]
        say("\n".join(tails))
        late = [TIME_IS_UP in text and code == 2 for code, text in zip(codes, texts, strict=True)]
        cut_off = any(late) or any(code in (124, 137) for code in codes)
        counts = total(tails)
        # 5: a process found no test among its files.
        failed = any(
            code not in (0, 5, 124, 137) and not is_late
            for code, is_late in zip(codes, late, strict=True)
        )
        failed |= bool(counts.get("failed", 0) or counts.get("errors", 0))
        if failed and any(UNSUPPORTED in text for text in texts):
            self.note(step.name, f"not done: compute-sanitizer says {UNSUPPORTED!r}")
            return False
        outcome = "failed" if failed else f"cut off after {limit} s" if cut_off else "passed"
        self.failed |= failed
        self.note(step.name, outcome, time.monotonic() - start, **counts)
        return not failed and not cut_off

    def note(self, step: str, outcome: str, seconds: float = 0.0, **counts: int) -> None:
        """Records an outcome; the summary is on disk even if a later step is killed."""
        row: dict[str, Any] = {"outcome": outcome, "seconds": round(seconds, 1), **counts}
        self.summary["steps"][step] = row
        self.keep()
        numbers = "".join(f", {count} {what}" for what, count in counts.items())
        say(f"== {step}: {outcome}{numbers}, {seconds:.1f} s")

    def keep(self) -> None:
        """Writes the summary, whole at every moment."""
        path = self.out / f"{self.name}-summary.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.summary, indent=1) + "\n")
        part.replace(path)

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
            subprocess.run(
                c, cwd=ROOT, env=surroundings(), capture_output=True, text=True, check=False
            ).stdout
            for c in asked
        ]
        counted = re.compile(r"^(\d+)(?:/\d+)? tests? collected", re.MULTILINE)
        found = sum(int(number) for text in texts for number in counted.findall(text))
        self.failed |= found == 0
        self.note(step.name, "collected" if found else "failed: nothing is collected", tests=found)


def surroundings() -> dict[str, str]:
    """Returns the environment of a step: the tree and this plugin come before all that is there."""
    paths = [str(ROOT), str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def collecting(command: Sequence[str]) -> list[str]:
    """Returns the command that collects what a command would run, without the sanitizer."""
    own = list(command[command.index(PYTEST[0]) :])
    left = [word for word in own if not word.startswith("--benchmark-json") and word != "-q"]
    return [*left, "--collect-only", "-q"]


def tail(text: str, lines: int = 12) -> str:
    """Returns the end of a log: the failures and the counts."""
    return "\n".join(text.splitlines()[-lines:])


def total(tails: list[str]) -> dict[str, int]:
    """Returns pytest's counts, added up over its processes."""
    counts: dict[str, int] = {}
    for text in tails:
        last = text.splitlines()[-1] if text else ""
        for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last):
            name = "errors" if what.startswith("error") else what
            counts[name] = counts.get(name, 0) + int(number)
    return counts


def merged(raws: Sequence[Path]) -> dict[str, Any]:
    """Returns pytest-benchmark's outputs as one, without those that have not come about."""
    found = [json.loads(raw.read_text()) for raw in raws if raw.exists() and raw.stat().st_size]
    rows = [row for each in found for row in each["benchmarks"]]
    return {**found[0], "benchmarks": rows} if rows else {}


def figures(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns of each benchmark what its case is, the median times, launches, bytes and shares."""
    rows = [benchmark["extra_info"] for benchmark in measured.get("benchmarks", [])]
    # A small row's copy, if it has one, stays in caches: the largest one is the memory's.
    copies = [(row["bytes"]["copy"], median(row, "copy")) for row in rows if "copy" in row["bytes"]]
    num_bytes, microseconds = max(copies, default=(0, 0.0))
    found = []
    for row in rows:
        timed = row["runs_us" if "runs_us" in row else "turns_us"]
        own = "lrfast captured" if "lrfast captured" in timed else "lrfast"
        if own not in timed:
            continue
        case = {name: row[name] for name in CASE if name in row}
        figure: dict[str, Any] = {
            **case,
            "us": median(row, own),
            "host_us": median(row, own, "_host"),
        }
        figure["launches"] = row["counts"].get(own, {}).get("launches")
        if own in row["bytes"]:
            figure["bytes"] = row["bytes"][own]
            figure["gb_per_s"] = round(row["bytes"][own] / figure["us"] / 1e3, 1)
            if num_bytes:
                share = figure["bytes"] / figure["us"] * microseconds / num_bytes
                figure["share_of_copy"] = round(share, 3)
        peers = {name: median(row, name) for name in timed if name.startswith("torch")}
        figure["over"] = {name: round(other / figure["us"], 2) for name, other in peers.items()}
        found.append(figure)
    return found


def median(row: dict[str, Any], name: str, kind: str = "") -> float | None:
    """Returns the median time of a work in microseconds, in runs where it was timed in runs."""
    way = "runs" if "runs_us" in row else "turns"
    quartiles = row.get(f"{way}{kind}_us", {}).get(name)
    return quartiles[1] if quartiles else None


def keep_results(raws: Sequence[Path], out: Path, facts: dict[str, str]) -> tuple[str, list[Any]]:
    """Turns what was measured into the files that benchmarks/results/ holds.

    Returns what came of it in words, and the figures.
    """
    measured = merged(raws)
    if not measured:
        return "no benchmark has finished", []
    measured["commit_info"] = {"dirty": False, **(measured.get("commit_info") or {})}
    measured["commit_info"]["id"] = facts["commit"]
    raw = out / f"{stamp(facts)}-benchmarks.json"
    raw.write_text(json.dumps(measured) + "\n")
    before = {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.json")}
    command = [sys.executable, "-m", "benchmarks.report", "--add", str(raw)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    new = [p for p in RESULTS.glob("*.json") if p.stat().st_mtime_ns != before.get(p)]
    for path in new:
        shutil.copy(path, out / path.name)
    # What is kept comes before the pages.
    problem = f"; {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""
    kept = ", ".join(sorted(path.name for path in new)) or "nothing"
    return f"{kept} kept{problem}", figures(measured)


def check(out: Path, facts: dict[str, str], chosen: list[str], seconds: float) -> int:
    """Runs the steps and returns 1 if any failed."""
    if facts["gpu"] == "no GPU":
        raise SystemExit(f"gpu-check: torch {facts['torch']} sees no GPU; --dry-run rehearses.")
    with tempfile.TemporaryDirectory() as name:
        return run_steps(Runner(out, Path(name), facts, seconds - RESERVE), chosen)


def run_steps(runner: Runner, chosen: list[str]) -> int:
    """Runs the steps, keeps what the benchmarks measured, and returns 1 if any step failed."""
    out, facts = runner.out, runner.summary["machine"]
    raws = [runner.scratch / f"{name}.json" for name in ("headline", "benchmarks")]
    for step in all_steps(raws, out, rehearse=False):
        if chosen and step.name not in chosen:
            continue
        if step.name not in ("headline", "benchmarks"):
            if not runner.run(step) and step.name == "build":
                return 1
            continue
        clocks: dict[str, Any] = runner.summary.setdefault("clocks", {})
        samples = runner.scratch / "clocks.csv"
        with clocks_under_load(samples, clocks.setdefault(step.name, {})):
            runner.run(step)
        outcome, runner.summary["figures"] = keep_results(raws, out, facts)
        for figure in runner.summary["figures"] if step.name == "headline" else []:
            say(", ".join(f"{name} {value}" for name, value in figure.items()))
        runner.note("results", outcome)
    return int(runner.failed)


def rehearse(out: Path, facts: dict[str, str], chosen: list[str]) -> int:
    """Does what a machine without a GPU can, and returns 1 if any of it failed."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        runner = Runner(out, scratch, facts, seconds=3600)
        raws = [scratch / f"{name}.json" for name in ("headline", "benchmarks")]
        for step in all_steps(raws, out, rehearse=True):
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
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
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
    return check(out, facts, chosen, given.budget)


if __name__ == "__main__":
    sys.exit(main())
