"""Compiles the CUDA kernels and reads what became of them: `make cuda-check`. Needs no GPU.

Fails where a file does not compile, where a kernel spills registers to memory, or where it uses so
many that fewer than two of its blocks fit on a multiprocessor at once. Of the loops over elements
it reads the machine code, and fails where an address is not known to be of the GPU's memory, where
loads wait for each other, where an element takes more instructions than the GPU's memory leaves
time for, or where the figures are not those committed, which docs/performance.md is computed from
(--write brings them up to date). Without nvdisasm that part is left out, which is an error with
LRFAST_REQUIRE_NVDISASM=1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_loops import (
    ISSUED,
    NORM,
    Loop,
    bytes_of_element,
    element_loops,
    find_nvdisasm,
    is_plain_step,
)

ROOT = Path(__file__).resolve().parent.parent
# A multiprocessor holds 65536 registers; two blocks on it hide each other's waits. So 64 registers
# at 512 threads, the block size that counts where a kernel declares none (__launch_bounds__).
REGISTERS_PER_BLOCK = 65536 // 2
DEFAULT_THREADS = 512
# What torch's BuildExtension adds on its own. It takes implicit half arithmetic away, so code that
# compiles here without these could fail there.
TORCH_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]

FIGURES = ROOT / "benchmarks/report/kernels.json"
# What the norm's loop is unrolled for: kVectorsAtOnce of csrc/cuda/elements.cuh.
NORM_LOADS = 4
PAIRS, NORM_TYPES = 9, 4  # with_types in csrc/core/dtypes.h; what of these a norm tells apart
# By NVIDIA's data sheets: bytes per second, multiprocessors, highest clock.
GPUS: dict[str, dict[str, Any]] = json.loads((ROOT / "benchmarks/report/gpus.json").read_text())
SHARE = 0.9  # of the bandwidth, which no kernel reaches whole
# Rounding at random takes more than a B200 has time for while it waits for the memory of one state:
# 50 instructions with Adagrad and 53 with RMSprop, where 49 are hidden.
RANDOM_INSTRUCTIONS = 54

ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)([^{;]*)[{;]", re.DOTALL)
MAX_THREADS = re.compile(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?")
# One function's part of ptxas' report, up to where the next one's begins.
PROPERTIES = re.compile(
    r"Function properties for (\w+)(.*?)(?=Function properties for|\Z)", re.DOTALL
)
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Function:
    """What the assembler says about one kernel, or one device function that was not inlined."""

    name: str
    file: str
    arch: str
    registers: int  # 0 for a device function: it counts in its callers
    limit: int
    spilled: int  # bytes stored plus bytes loaded
    shared: int  # bytes of shared memory

    @property
    def fault(self) -> str:
        """Returns what is wrong with it, or nothing."""
        if self.spilled:
            return "spills"
        return f"more than {self.limit} registers" if self.registers > self.limit else ""


def find_nvcc() -> str | None:
    """Returns the compiler that a build would use."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def register_limits(ptx: str) -> dict[str, int]:
    """Returns, for each kernel, how many registers leave room for two blocks of its size."""
    limits = {}
    for name, _, directives in ENTRY.findall(ptx):
        threads = DEFAULT_THREADS
        if declared := MAX_THREADS.search(directives):
            threads = int(declared[1]) * int(declared[2] or 1) * int(declared[3] or 1)
        # Never under 64: a block of 1024 threads has the whole multiprocessor to itself anyway.
        limits[name] = min(255, max(64, REGISTERS_PER_BLOCK // threads))
    return limits


def incomplete(loops: list[Loop], kernels: set[str]) -> list[str]:
    """Returns the kernels that lack a loop for some pair of types."""
    found: dict[str, set[tuple[str, str]]] = {}
    for loop in loops:
        found.setdefault(loop.function, set()).add((loop.param, loop.state))
    wanted = {name: PAIRS for name in kernels if is_plain_step(name)}
    wanted |= {name: NORM_TYPES for name in kernels if NORM in name}
    return readable([name for name, count in wanted.items() if len(found.get(name, ())) < count])


def compile_file(
    nvcc: str, nvdisasm: str | None, flags: list[str], path: Path, arch: str
) -> tuple[list[Function], list[Loop]]:
    """Compiles one file for one architecture, and reads its loops where there is a disassembler.

    Raises:
        RuntimeError: With the compiler's messages, if it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *flags, "-I", str(ROOT / "csrc"), f"-arch={arch}", "-Xptxas=-v"]
        command += ["-Xcompiler=-fPIC", "--keep", f"--keep-dir={folder}", "-c", str(path)]
        done = subprocess.run(
            [*command, "-o", f"{folder}/out.o"], capture_output=True, text=True, check=False
        )
        report = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{path.relative_to(ROOT)} does not compile for {arch}:\n{report}")
        limits = register_limits(Path(folder, f"{path.stem}.ptx").read_text())
        cubins = sorted(Path(folder).glob(f"{path.stem}*.cubin"))
        loops = [loop for cubin in cubins if nvdisasm for loop in element_loops(nvdisasm, cubin)]
        lacking = incomplete(loops, set(limits)) if nvdisasm else []
        if lacking:
            raise RuntimeError(f"{path.name}: loops not found in {', '.join(lacking)} for {arch}")
    functions = []
    for name, rest in PROPERTIES.findall(report):
        spills, registers, shared = (part.search(rest) for part in (SPILLS, REGISTERS, SHARED))
        functions.append(
            Function(
                name=name,
                file=path.name,
                arch=arch,
                registers=int(registers[1]) if registers and name in limits else 0,
                limit=limits.get(name, 255),
                spilled=int(spills[1]) + int(spills[2]) if spills else 0,
                shared=int(shared[1]) if shared else 0,
            )
        )
    if missing := set(limits) - {function.name for function in functions}:
        raise RuntimeError(
            f"{path.name}: ptxas reported nothing about {', '.join(sorted(missing))}"
        )
    return functions, loops


def budget(loop: Loop, arch: str) -> float:
    """Returns the instructions that an element may take while the GPU moves its bytes."""
    moved = sum(bytes_of_element(loop.function, loop.param, loop.state, loop.states))
    own = [gpu for gpu in GPUS.values() if gpu["arch"] == arch] or list(GPUS.values())
    cycles: float = min(gpu["processors"] * gpu["clock"] / gpu["bandwidth"] for gpu in own)
    allowed: float = moved / SHARE * cycles * ISSUED
    return max(allowed, RANDOM_INSTRUCTIONS) if loop.param.startswith("stochastic") else allowed


def loop_fault(loop: Loop, arch: str) -> str:
    """Returns what is wrong with a loop, or nothing."""
    # Of doubles, which fill two registers each, one may come later.
    rule_loads = loop.states + 2 - (loop.param == "float64")
    wanted = rule_loads if "step_kernel" in loop.function else NORM_LOADS
    if loop.generic:
        return f"{loop.generic} generic accesses"
    if len(loop.loads) < wanted:
        return f"{len(loop.loads)} of {wanted} loads at once"
    if loop.param != "float64" and loop.per_element > budget(loop, arch):
        return f"more than {budget(loop, arch):.0f} instructions"
    return ""


def readable(names: list[str]) -> list[str]:
    """Returns the names as they stand in the source, without the namespaces and the arguments."""
    if shutil.which("c++filt") is None:
        return names
    command = ["c++filt", "--no-params"]
    done = subprocess.run(
        command, input="\n".join(names), capture_output=True, text=True, check=True
    )
    return [
        re.sub(r"(\w+|\(anonymous namespace\))::", "", name) for name in done.stdout.splitlines()
    ]


def function_rows(functions: list[Function]) -> list[tuple[str, ...]]:
    """Returns a heading and one row per kernel and architecture."""
    heads = ("file", "kernel", "arch", "registers", "limit", "spilled bytes", "shared bytes", "")
    rows: list[tuple[str, ...]] = [heads]
    for function, name in zip(functions, readable([f.name for f in functions]), strict=True):
        numbers = (function.registers, function.limit, function.spilled, function.shared)
        rows.append((function.file, name, function.arch, *map(str, numbers), function.fault))
    return rows


def loop_rows(loops: list[Loop], arch: str) -> list[tuple[str, ...]]:
    """Returns a heading and one row per kernel, pair of types and number of states."""
    heads = ("kernel", "arch", "parameters", "states", "loads at once", "bytes", "an element's")
    rows: list[tuple[str, ...]] = [(*heads, "budget", "")]
    for loop, name in zip(loops, readable([loop.function for loop in loops]), strict=True):
        types = (loop.param, f"{loop.states} {loop.state}" if loop.states else "none")
        figures = (str(len(loop.loads)), str(sum(loop.loads)), f"{loop.per_element:.1f}")
        rows.append((name, arch, *types, *figures, f"{budget(loop, arch):.0f}"))
        rows[-1] += (loop_fault(loop, arch),)
    return rows


def figures_of(functions: list[Function], loops: list[Loop]) -> dict[str, Any]:
    """Returns what docs/performance.md needs of one architecture."""
    names = readable([function.name for function in functions])
    rows = zip(names, functions, strict=True)
    kernels = {n: [f.registers, f.spilled, f.shared] for n, f in rows if f.file == "step.cu"}
    found = []
    for loop, name in zip(loops, readable([loop.function for loop in loops]), strict=True):
        types = [name, loop.param, loop.state, loop.states]
        found.append([*types, len(loop.loads), sum(loop.loads), round(loop.per_element, 2)])
    return {"kernels": dict(sorted(kernels.items())), "loops": sorted(found)}


def compare_figures(nvcc: str, made: dict[str, dict[str, Any]], write: bool) -> list[str]:
    """Returns the architectures whose committed figures are not these; writes them if asked."""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release .*", done.stdout)
    compiler = release[0] if release else ""
    held: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if write:
        archs = held["archs"] if held.get("nvcc") == compiler else {}
        held = {"nvcc": compiler, "archs": {**archs, **made}}
        lines = json.dumps(held, indent=1)
        rows = re.sub(r"\[([^\[\]]*)\]", lambda row: f"[{' '.join(row[1].split())}]", lines)
        FIGURES.write_text(rows + "\n")
    if held.get("nvcc") != compiler:
        return []
    return [arch for arch, own in made.items() if held["archs"].get(arch, own) != own]


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns rows as columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    """Prints the table and returns 1 if any kernel breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", default="sm_90", help="for example sm_80,sm_90")
    parser.add_argument(
        "--write", action="store_true", help="bring the committed figures up to date"
    )
    options = parser.parse_args()
    archs = re.split(r"[,;\s]+", options.archs)
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None:
        sys.stdout.write(
            "cuda-check: skipped, there is no nvcc on PATH or under CUDA_HOME; a CUDA toolkit is "
            "enough, no GPU is needed (https://developer.nvidia.com/cuda-downloads)\n"
        )
        return 0
    build = runpy.run_path(str(ROOT / "setup.py"))
    flags = [*TORCH_FLAGS, *build["NVCC_FLAGS"], *build["OPTIMIZED"]["nvcc"]]
    jobs = [(path, arch) for path in sorted((ROOT / "csrc/cuda").glob("*.cu")) for arch in archs]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        try:
            parts = list(pool.map(lambda job: compile_file(nvcc, nvdisasm, flags, *job), jobs))
        except RuntimeError as error:
            sys.stdout.write(f"cuda-check: {error}\n")
            return 1
    functions = [function for part, _ in parts for function in part]
    faults = sum(bool(function.fault) for function in functions)
    sys.stdout.write(table(function_rows(functions)) + "\n")
    if nvdisasm is None:
        sys.stdout.write(
            "cuda-check: the loops over elements are not checked, there is no nvdisasm on PATH, "
            "under CUDA_HOME or in this environment (pip install nvidia-cuda-nvdisasm)\n"
        )
        faults += os.environ.get("LRFAST_REQUIRE_NVDISASM") == "1"
    made = {}
    for arch in archs if nvdisasm else []:
        loops = [
            loop
            for job, (_, own) in zip(jobs, parts, strict=True)
            if job[1] == arch
            for loop in own
        ]
        faults += sum(bool(loop_fault(loop, arch)) for loop in loops) + (not loops)
        sys.stdout.write("\n" + table(loop_rows(loops, arch)) + "\n")
        made[arch] = figures_of([f for f in functions if f.arch == arch], loops)
    for arch in compare_figures(nvcc, made, options.write):
        sys.stdout.write(f"cuda-check: {FIGURES.name} has other figures of {arch}: --write\n")
        faults += 1
    sys.stdout.write(f"cuda-check: {len(functions)} functions, {faults} faults\n")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
