"""Compiles the CUDA kernels and reads the assembler's report: `make cuda-check`. Needs no GPU.

Fails where a file does not compile, where a kernel spills registers to memory, or where it uses so
many that fewer than two of its blocks fit on a multiprocessor at once.
"""

from __future__ import annotations

import argparse
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

ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)([^{;]*)[{;]", re.DOTALL)
MAX_THREADS = re.compile(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?")
# One function's part of ptxas' report, up to where the next one's begins.
PROPERTIES = re.compile(
    r"Function properties for (\w+)(.*?)(?=Function properties for|\Z)", re.DOTALL
)
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Function:
    """What the assembler says about one kernel, or one device function that was not inlined."""

    name: str
    file: str
    arch: str
    registers: int  # 0 for a device function: it counts in its callers
    limit: int
    spilled: int  # bytes stored plus bytes loaded

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


def compile_file(nvcc: str, flags: list[str], path: Path, arch: str) -> list[Function]:
    """Compiles one file for one architecture.

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
    functions = []
    for name, rest in PROPERTIES.findall(report):
        spills, registers = SPILLS.search(rest), REGISTERS.search(rest)
        functions.append(
            Function(
                name=name,
                file=path.name,
                arch=arch,
                registers=int(registers[1]) if registers and name in limits else 0,
                limit=limits.get(name, 255),
                spilled=int(spills[1]) + int(spills[2]) if spills else 0,
            )
        )
    if missing := set(limits) - {function.name for function in functions}:
        raise RuntimeError(
            f"{path.name}: ptxas reported nothing about {', '.join(sorted(missing))}"
        )
    return functions


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


def table(functions: list[Function]) -> str:
    """Returns one line per kernel and architecture."""
    rows = [("file", "kernel", "arch", "registers", "limit", "spilled bytes", "")]
    for function, name in zip(functions, readable([f.name for f in functions]), strict=True):
        numbers = (str(function.registers), str(function.limit), str(function.spilled))
        rows.append((function.file, name, function.arch, *numbers, function.fault))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    """Prints the table and returns 1 if any kernel breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", default="sm_90", help="for example sm_80,sm_90")
    archs = re.split(r"[,;\s]+", parser.parse_args().archs)
    nvcc = find_nvcc()
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
            parts = list(pool.map(lambda job: compile_file(nvcc, flags, *job), jobs))
        except RuntimeError as error:
            sys.stdout.write(f"cuda-check: {error}\n")
            return 1
    functions = [function for part in parts for function in part]
    faults = sum(bool(function.fault) for function in functions)
    sys.stdout.write(table(functions) + "\n")
    sys.stdout.write(f"cuda-check: {len(functions)} functions, {faults} faults\n")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
