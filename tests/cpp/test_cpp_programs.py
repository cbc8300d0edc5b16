"""The engine without torch: tests/cpp compiled with g++ alone and run under the sanitizers.

The bodies of the CUDA kernels run here too, over whole grids on the host, on machines without a
GPU. `make sanitize` runs this file alone. Objects are compiled once, into build/cpp (cpp_objects).

With LRFAST_CPP_COVERAGE=folder some programs run once more, compiled for gcov, and leave in that
folder what `make coverage` reads: those that need no grid, and so show what the rest is built on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cpp_objects import ROOT, ObjectCache, built_for_extension, included_by, run

CSRC = ROOT / "csrc"
FOLDER = ROOT / "tests" / "cpp"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("test_*.cpp"))
DRIVERS = sorted(path.stem for path in (CSRC / "cpu").glob("*.cpp"))

CXX = os.environ.get("CXX", "g++")
LANGUAGE = ["-std=c++20", "-fno-math-errno", "-ffp-contract=off"]
COMMON = [*LANGUAGE, "-I", "csrc", "-pthread"]
# Line numbers, but no variables: a quarter of the time goes into them. Functions that the extension
# always inlines need not be, and -Og is enough: a sanitizer adds checks to every access in every
# copy, and to compile those takes longer than the calls do.
SANITIZED = ["-Og", "-g1", "-DLRFAST_NO_CLONES", "-DLRFAST_HD=inline", "-fno-sanitize-recover=all"]
BUILDS = {
    "address": [*SANITIZED, "-fsanitize=address,undefined"],
    "thread": [*SANITIZED, "-fsanitize=thread"],
    # The drivers as the extension has them. The loops come vectorised, once per instruction set,
    # and must still agree bit for bit with the body that nvcc compiles.
    "release": ["-O3"],
    # At -O0 the loops take ten times as long. Threads count, too.
    "coverage": ["-O1", "-DLRFAST_NO_CLONES", "--coverage", "-fprofile-update=atomic"],
}
# What the drivers are held against, and no part of what is tested: quickly compiled.
BESIDE_RELEASE = ["-Og", "-DLRFAST_HD=inline"]
AGREEMENTS = ["test_clipping", "test_passes", "test_step_body"]
# test_step_races is for the thread sanitizer: what the address sanitizer would see of it, it sees
# of test_step_body, which runs the same bodies, and to compile it takes two minutes.
RUNS = [
    *[(program, "address") for program in PROGRAMS if program != "test_step_races"],
    *[("test_cpu_step", "thread"), ("test_step_races", "thread")],
    *[(program, "release") for program in [*AGREEMENTS, "test_cpu_step"]],
]
COUNTS = os.environ.get("LRFAST_CPP_COVERAGE")
COUNTED = ["test_cpu_step", "test_curve", "test_math", "test_rules", "test_schedule"]
if COUNTS:
    RUNS += [(program, "coverage") for program in COUNTED]

# The loader picks one clone of the drivers' loops, the best for this machine, which the release
# programs run; these are the others that it can run.
LEVELS = {
    "x86-64": {"sse2"},
    "x86-64-v3": {"avx2", "bmi2", "fma"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()
CLONES = [level for level, needs in LEVELS.items() if needs <= FLAGS][:-1]
for level in CLONES:
    BUILDS[level] = ["-O3", "-DLRFAST_NO_CLONES", f"-march={level}"]

Objects = dict[tuple[str, str], Future[Path]]


def source_of(stem: str) -> Path:
    return (CSRC / "cpu" if stem in DRIVERS else FOLDER) / f"{stem}.cpp"


def parts_of(program: str, build: str) -> list[str]:
    """The sources that a program is linked of: its own and, of each header that one of them
    includes, the one of the same name. One thread runs all blocks of grid.cpp's grids, where
    ThreadSanitizer has nothing to find; it is no part of what is counted."""
    parts: list[str] = []
    rest = [program]
    while rest:
        stem = rest.pop()
        parts.append(stem)
        for header in included_by(source_of(stem)):
            is_ours = header.parent in (FOLDER, CSRC / "cpu")
            if is_ours and header.with_suffix(".cpp").exists():
                rest.append(header.stem)
        rest = [stem for stem in dict.fromkeys(rest) if stem not in parts]
        if build in ("thread", "coverage"):
            rest = [stem for stem in rest if stem != "grid"]
    return parts


def compile_object(stem: str, build: str, cache: ObjectCache) -> Path:
    source = source_of(stem)
    if build == "coverage":  # gcov's notes lie beside the object
        target = Path(str(COUNTS)) / f"{stem}-{build}.o"
        run([CXX, *COMMON, *BUILDS[build], "-c", str(source), "-o", str(target)])
        return target
    flags = BUILDS[build]
    if build == "release":
        if stem not in DRIVERS:
            flags = BESIDE_RELEASE
        elif built := built_for_extension(source, [*LANGUAGE, *flags]):
            return built
    return cache.object(source, [*COMMON, *flags])


def expect_pass(program: str, parts: list[Path], build: str, folder: Path) -> None:
    binary = folder / program
    run([CXX, *COMMON, *BUILDS[build], *map(str, parts), "-o", str(binary)])
    output = run([str(binary)])
    assert re.search(rf"^{program}: [1-9]\d* passed, 0 failed$", output, re.MULTILINE), output


def keys_of(program: str, build: str) -> list[tuple[str, str]]:
    """The objects of one run: of a clone, the drivers are its own and the rest the release's."""
    is_clone = build in LEVELS
    return [
        (stem, build if stem in DRIVERS or not is_clone else "release")
        for stem in parts_of(program, "release" if is_clone else build)
    ]


@pytest.fixture(scope="module")
def objects(request: pytest.FixtureRequest) -> Iterator[Objects]:
    """Object files by (stem, build), compiling on all cores while the first tests already run."""
    cache = ObjectCache(ROOT / "build" / "cpp", CXX)
    wanted: list[tuple[str, str]] = []
    for item in request.session.items:
        if item.path == request.path and hasattr(item, "callspec"):
            wanted += keys_of(item.callspec.params["program"], item.callspec.params["build"])
    longest = [("grid", "address"), ("step", "release")]  # so they come first
    ordered = [*(key for key in longest if key in wanted), *wanted]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {key: pool.submit(compile_object, *key, cache) for key in dict.fromkeys(ordered)}
        pool.shutdown(cancel_futures=True)
    cache.prune()


def marked(program: str, build: str) -> object:
    marks = [pytest.mark.full] if build in LEVELS else []
    return pytest.param(program, build, marks=marks)


CLONED = [(program, level) for level in CLONES for program in AGREEMENTS]


@pytest.mark.parametrize(("program", "build"), [marked(*run) for run in [*RUNS, *CLONED]])
def test_program(program: str, build: str, objects: Objects, tmp_path: Path) -> None:
    parts = [objects[key].result() for key in keys_of(program, build)]
    expect_pass(program, parts, "release" if build in LEVELS else build, tmp_path)


def test_layers_include_and_hold_what_they_may() -> None:
    run([sys.executable, str(ROOT / "tools" / "check_sources.py")])
