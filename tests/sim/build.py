"""Compiles the simulated CUDA backend and links the engine to it, into build/sim.

The engine's own objects are taken as ``make build`` has left them; only no_cuda.o gives way to
engine.cpp. What is built is named by a hash of all that it is made of, so that it is built once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "sim"
CXX = os.environ.get("CXX", "g++")
# Contraction is off as in setup.py, as CPU and GPU agree to the bit only so.
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wextra"]
# For engine.cpp and the objects alike.
ENGINE = "engine.cpp"


class Built(NamedTuple):
    """The files that a simulation loads."""

    backend: Path
    engine: Path


def torch_folder() -> Path:
    """The installed torch, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("the simulator is compiled against torch, which is not installed")
    return Path(spec.origin).parent


def digest(parts: Iterable[str | Path]) -> str:
    """A hash of texts and files' contents."""
    found = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()[:16]


def engine_objects() -> list[Path]:
    """What the build has made of the engine, but for what engine.cpp stands in for."""
    tag = f"{sys.implementation.cache_tag}-torch{version('torch')}-cpu"
    objects = []
    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        if source.parent.name == "bindings" and source.name != "all.cpp":
            continue
        made = (ROOT / "build" / tag / source.relative_to(ROOT)).with_suffix(".o")
        if not made.exists():
            raise RuntimeError(f"{made.relative_to(ROOT)} is missing: run `make build` first")
        objects.append(made)
    return objects


def compile_one(source: Path, includes: list[str], key: str) -> Path:
    """The object of a source, compiled unless it is there already."""
    made = OUT / f"{source.stem}-{key}.o"
    if not made.exists():
        unfinished = made.with_suffix(f".{os.getpid()}.tmp")
        run([CXX, *FLAGS, *includes, "-c", str(source), "-o", str(unfinished)])
        for old in OUT.glob(f"{source.stem}-*.o"):
            old.unlink(missing_ok=True)
        unfinished.replace(made)
    return made


def link(name: str, inputs: list[Path], torch_libraries: list[str], extra: list[str]) -> Path:
    """A shared library in a folder named by its inputs, linked unless it is there already."""
    libraries = torch_folder() / "lib"
    made = OUT / digest([*inputs, *extra]) / name
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        unfinished = made.with_suffix(f".{os.getpid()}.tmp")
        torch_flags = [f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
        torch_flags += [f"-l{library}" for library in torch_libraries]
        objects = map(str, inputs)
        run([CXX, "-shared", "-o", str(unfinished), *objects, *extra, *torch_flags])
        unfinished.replace(made)
    return made


def run(command: list[str]) -> None:
    """Runs a compiler; what it says is the error's message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")


def build() -> Built:
    """Both libraries, compiled where something has changed."""
    OUT.mkdir(parents=True, exist_ok=True)
    include = torch_folder() / "include"
    python = sysconfig.get_paths()["include"]
    system = [include, include / "torch" / "csrc" / "api" / "include", python]
    includes = [f"-isystem{folder}" for folder in system]
    includes += [f"-I{ROOT / 'csrc'}", f"-I{HERE / 'backend'}"]
    headers = sorted((HERE / "backend").glob("*.h"))
    engine_headers = sorted(p for p in (ROOT / "csrc").rglob("*.*") if p.suffix in (".h", ".cuh"))
    sources = sorted((HERE / "backend").glob("*.cpp"))
    common = [CXX, *FLAGS, version("torch"), sys.version]

    def compiled(source: Path) -> Path:
        needed = [*headers, *(engine_headers if source.name == ENGINE else [])]
        return compile_one(source, includes, digest([*common, *needed, source]))

    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(jobs) as pool:
        objects = dict(zip(sources, pool.map(compiled, sources), strict=True))
    launches = objects.pop(HERE / "backend" / ENGINE)
    libraries = ["torch_python", "torch_cpu", "c10"]
    backend = link("_backend.so", list(objects.values()), libraries, [])
    beside = [f"-L{backend.parent}", "-l:_backend.so", f"-Wl,-rpath,{backend.parent}"]
    engine = link("_C.so", [*engine_objects(), launches], libraries, beside)
    for folder in OUT.iterdir():
        if folder.is_dir() and folder not in (backend.parent, engine.parent):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    return Built(backend, engine)


if __name__ == "__main__":
    build()
