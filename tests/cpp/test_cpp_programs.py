"""The engine without torch: tests/cpp compiled with g++ alone and run under the sanitizers.

The bodies of the CUDA kernels run here too, over whole grids on the host, on machines without a
GPU. `make sanitize` runs this file alone.

With LRFAST_CPP_COVERAGE=folder some programs run once more, compiled for gcov, and leave in that
folder what `make coverage` reads: those that need no grid, and so show what the rest is built on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "tests" / "cpp"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("test_*.cpp"))
SUPPORT = sorted(path.stem for path in FOLDER.glob("*.cpp") if path.stem not in PROGRAMS)
DRIVERS = sorted(path.stem for path in (CSRC / "cpu").glob("*.cpp"))

CXX = os.environ.get("CXX", "g++")
COMMON = ["-std=c++20", "-fno-math-errno", "-ffp-contract=off", "-I", str(CSRC), "-pthread"]
# Line numbers, but no variables: a quarter of the time goes into them.
SANITIZED = ["-O1", "-g1", "-DLRFAST_NO_CLONES", "-fno-sanitize-recover=all"]
BUILDS = {
    "address": [*SANITIZED, "-fsanitize=address,undefined"],
    "thread": [*SANITIZED, "-fsanitize=thread"],
    # As the extension is built. The loops come vectorised, once per instruction set, and must
    # still agree bit for bit with the body that nvcc compiles.
    "release": ["-O3"],
    # At -O0 the loops take ten times as long. Threads count, too.
    "coverage": ["-O1", "-DLRFAST_NO_CLONES", "--coverage", "-fprofile-update=atomic"],
}
AGREEMENTS = ["test_clipping", "test_passes", "test_step_body"]
RUNS = [
    *[(program, "address") for program in PROGRAMS],
    *[("test_cpu_step", "thread"), ("test_step_races", "thread")],
    *[(program, "release") for program in [*AGREEMENTS, "test_cpu_step"]],
]
COUNTS = os.environ.get("LRFAST_CPP_COVERAGE")
COUNTED = ["test_cpu_step", "test_curve", "test_math", "test_rules", "test_schedule"]
if COUNTS:
    RUNS += [(program, "coverage") for program in COUNTED]

# The loader picks one clone of the drivers' loops, the best for this machine; these are the others
# that it can run.
LEVELS = {
    "x86-64": {"sse2"},
    "x86-64-v3": {"avx2", "bmi2", "fma"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()
CLONES = [level for level, needs in LEVELS.items() if needs <= FLAGS]
for level in CLONES:
    BUILDS[level] = [*BUILDS["release"], "-DLRFAST_NO_CLONES", f"-march={level}"]

Objects = dict[tuple[str, str], Future]


def support_of(build: str) -> list[str]:
    """What the programs of a build share. One thread runs all blocks of grid.cpp's grids, where
    ThreadSanitizer has nothing to find; it is no part of what is counted."""
    return [stem for stem in SUPPORT if stem != "grid" or build not in ("thread", "coverage")]


def source_of(stem: str) -> Path:
    return (CSRC / "cpu" if stem in DRIVERS else FOLDER) / f"{stem}.cpp"


def run(command: list[str], seconds: float = 900.0) -> str:
    """Both outputs of a command that must succeed; step.cpp takes minutes on a busy machine."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\nreturned {done.returncode}:\n{output}"
    return output


def compile_object(stem: str, build: str, folder: Path) -> Path:
    target = folder / f"{stem}-{build}.o"
    run([CXX, *COMMON, *BUILDS[build], "-c", str(source_of(stem)), "-o", str(target)])
    return target


def expect_pass(program: str, parts: list[Path], build: str, folder: Path) -> None:
    binary = folder / program
    run([CXX, *COMMON, *BUILDS[build], *map(str, parts), "-o", str(binary)])
    output = run([str(binary)])
    assert re.search(rf"^{program}: [1-9]\d* passed, 0 failed$", output, re.MULTILINE), output


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Objects]:
    """Object files by (stem, build), compiling on all cores while the first tests already run."""
    folder = Path(COUNTS) if COUNTS else tmp_path_factory.mktemp("cpp")
    wanted = [("grid", "address"), ("step", "release")]  # take longest, so they come first
    for program, build in RUNS:
        wanted += [(stem, build) for stem in [*support_of(build), *DRIVERS, program]]
    wanted += [(stem, level) for level in CLONES for stem in DRIVERS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {key: pool.submit(compile_object, *key, folder) for key in dict.fromkeys(wanted)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("program", "build"), RUNS)
def test_program(program: str, build: str, objects: Objects, tmp_path: Path) -> None:
    stems = [program, *support_of(build), *DRIVERS]
    expect_pass(program, [objects[stem, build].result() for stem in stems], build, tmp_path)


@pytest.mark.parametrize("program", AGREEMENTS)
@pytest.mark.parametrize("level", CLONES)
def test_clone(level: str, program: str, objects: Objects, tmp_path: Path) -> None:
    parts = [objects[stem, "release"].result() for stem in [program, *support_of("release")]]
    parts += [objects[stem, level].result() for stem in DRIVERS]
    expect_pass(program, parts, "release", tmp_path)


def test_layers_include_and_hold_what_they_may() -> None:
    run([sys.executable, str(ROOT / "tools" / "check_sources.py")])
