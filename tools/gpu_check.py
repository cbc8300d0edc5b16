"""Everything that only a machine with a GPU can show: `make gpu-check`.

Builds the kernels in place, runs the tests marked `gpu`, some of them again under
compute-sanitizer, and the benchmarks marked `gpu`. Uses the Python that runs it, with the torch
installed there, and no network. The folder of results holds one log per step, benchmarks.json and
summary.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "numpy", "tqdm", "setuptools", "pytest", "pytest_benchmark", "hypothesis")
PYTEST = [sys.executable, "-m", "pytest", "-m"]
# This machine's packages are not the pinned ones, and may warn of what the pinned ones do not.
LENIENT = ["-W", "default"]
# Memory errors surface at once; under the sanitizer a test takes 10 to 100 times as long.
MEMCHECK_SECONDS = 300


def say(text: str) -> None:
    """Prints a line at once, in order with what subprocesses print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def machine() -> dict[str, str]:
    """Returns what the results depend on."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"gpu-check: torch {torch.__version__} sees no CUDA device on this machine."
        )
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
    }
    commands = {
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "commit": ["git", "describe", "--always", "--dirty"],
        "nvcc": ["nvcc", "--version"],
    }
    for name, command in commands.items():
        if shutil.which(command[0]):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            facts[name] = (done.stdout.strip().splitlines() or ["unknown"])[-1]
    return facts


class Runner:
    """Runs steps one after another and keeps their logs and outcomes in one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.summary: dict[str, object] = {"machine": machine()}
        self.failed = False

    def run(self, step: str, command: list[str], limit: int | None = None, **env: str) -> bool:
        """Runs one step, its output here and in STEP.log. To run out of time is not to fail."""
        say(f"\n== {step}: {' '.join(command)}")
        start = time.monotonic()
        command = ["timeout", str(limit), *command] if limit else command
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
        with (
            (self.out / f"{step}.log").open("w") as log,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            for line in process.stdout or ():
                sys.stdout.write(line)
                log.write(line)
        outcome = "passed" if process.returncode == 0 else f"failed ({process.returncode})"
        if limit and process.returncode == 124:
            outcome = f"no error found in {limit} s, not finished"
        self.failed |= outcome.startswith("failed")
        self.note(step, outcome, time.monotonic() - start)
        return process.returncode == 0

    def note(self, step: str, outcome: str, seconds: float = 0.0) -> None:
        """Records an outcome; the summary is on disk even if a later step is killed."""
        self.summary[step] = {"outcome": outcome, "seconds": round(seconds, 1)}
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=2) + "\n")
        say(f"== {step}: {outcome}, {seconds:.1f} s")


def main() -> int:
    """Runs the steps and returns 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    out: Path = parser.parse_args().out.resolve()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"gpu-check: {sys.executable} lacks {', '.join(missing)}.")
    out.mkdir(parents=True, exist_ok=True)
    runner = Runner(out)

    build = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    if not runner.run("build", build, LRFAST_CUDA="1"):
        return 1
    # A test file that lacks an optional package must not cost the results of all the others.
    tests = [*PYTEST, "gpu", *LENIENT, "--continue-on-collection-errors"]
    runner.run("tests", tests, LRFAST_REQUIRE_CUDA="1")

    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]
    probe = [*sanitizer, sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"]
    if shutil.which(sanitizer[0]) is None:
        runner.note("memcheck", "skipped, there is no compute-sanitizer on PATH")
    elif subprocess.run(probe, capture_output=True, check=False).returncode:
        runner.note("memcheck", "skipped, compute-sanitizer does not run on this machine")
    else:
        # Without torch's cache each tensor is an allocation, with an end that is guarded.
        memcheck = [*sanitizer, *PYTEST, "gpu and not slow", *LENIENT]
        runner.run("memcheck", memcheck, MEMCHECK_SECONDS, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    measure = ["-o", "addopts=--strict-markers", "--benchmark-only"]
    measure += [f"--benchmark-json={out / 'benchmarks.json'}", "benchmarks"]
    runner.run("benchmarks", [*PYTEST, "gpu", *LENIENT, *measure])
    return int(runner.failed)


if __name__ == "__main__":
    sys.exit(main())
