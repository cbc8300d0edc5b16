"""The engine without torch: tests/cpp compiled with g++ alone and run under the sanitizers.

The bodies of the CUDA kernels run here too, over whole grids on the host, on machines without a
GPU. `make sanitize` runs this file alone.
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

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "cpp").glob("test_*.cpp"))
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
}
RUNS = [
    *[(program, "address") for program in PROGRAMS],
    *[("test_cpu_step", "thread"), ("test_step_races", "thread")],
    *[("test_step_body", "release"), ("test_cpu_step", "release")],
]


def run(command: list[str], seconds: float = 300.0) -> str:
    """Both outputs of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\nreturned {done.returncode}:\n{output}"
    return output


def compile_object(source: Path, build: str, folder: Path, *flags: str) -> Path:
    target = folder / f"{source.stem}-{build}.o"
    run([CXX, *COMMON, *BUILDS[build], *flags, "-c", str(source), "-o", str(target)])
    return target


def expect_pass(program: str, parts: list[Path], build: str, folder: Path) -> None:
    binary = folder / program
    run([CXX, *COMMON, *BUILDS[build], *map(str, parts), "-o", str(binary)])
    output = run([str(binary)])
    assert re.search(rf"^{program}: [1-9]\d* passed, 0 failed$", output, re.MULTILINE), output


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future]]:
    """Object files by (stem, build), compiling on all cores while the first tests already run."""
    folder = tmp_path_factory.mktemp("cpp")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures: dict[tuple[str, str], Future] = {}
        for program, build in RUNS:
            drivers = [CSRC / "cpu" / f"{stem}.cpp" for stem in DRIVERS]
            for source in [ROOT / "tests" / "cpp" / f"{program}.cpp", *drivers]:
                if (source.stem, build) not in futures:
                    job = pool.submit(compile_object, source, build, folder)
                    futures[source.stem, build] = job
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("program", "build"), RUNS)
def test_program(
    program: str, build: str, objects: dict[tuple[str, str], Future], tmp_path: Path
) -> None:
    parts = [objects[stem, build].result() for stem in [program, *DRIVERS]]
    expect_pass(program, parts, build, tmp_path)


# The loader picks one clone of the drivers' loops, the best for this machine; these are the others
# that it can run.
LEVELS = {
    "x86-64": {"sse2"},
    "x86-64-v3": {"avx2", "bmi2", "fma"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()


@pytest.mark.parametrize("march", [level for level, needs in LEVELS.items() if needs <= FLAGS])
def test_clone(march: str, objects: dict[tuple[str, str], Future], tmp_path: Path) -> None:
    flags = ["-DLRFAST_NO_CLONES", f"-march={march}"]
    sources = [CSRC / "cpu" / f"{stem}.cpp" for stem in DRIVERS]
    parts = [compile_object(source, "release", tmp_path, *flags) for source in sources]
    parts.append(objects["test_step_body", "release"].result())
    expect_pass("test_step_body", parts, "release", tmp_path)


def test_layers_include_and_hold_what_they_may() -> None:
    run([sys.executable, str(ROOT / "tools" / "check_sources.py")])
