"""Imports of optional libraries, whose failures are one line with the cause and the remedy."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import NamedTuple

import torch

# Builds of one torch each; an import fails beside another torch, or another build of the same one.
BUILT_FOR_TORCH = ("torchvision", "torchaudio")
_INDEX = "https://download.pytorch.org/whl"


class Fault(NamedTuple):
    """Cause and remedy of a failed import."""

    found: str
    advice: str


@contextmanager
def importing(need: str, *libraries: str, extra: str) -> Iterator[None]:
    """Raise whatever an import raises as an ImportError of one line.

    Args:
        need: Part of lrfast and what it needs, for the message.
        *libraries: Their names.
        extra: Extra of lrfast that installs them.
    """
    handled = sys.exc_info()[1]  # by the caller: no cause of what follows
    try:
        yield
    except Exception as error:  # a broken library may raise anything
        root = _causes(error, handled)[0]
        if isinstance(root, ModuleNotFoundError) and _package(root.name) in libraries:
            them = "it" if len(libraries) == 1 else "them"
            message = f"{need}: install {them} with `pip install 'lrfast[{extra}]'`"
        else:
            message = f"{need}: {'; '.join(fault_of(error, libraries[0], handled))}"
        raise ImportError(message) from error


def fault_of(error: Exception, library: str, handled: BaseException | None = None) -> Fault:
    """Return why a library could not be imported: the module whose import failed first."""
    causes = _causes(error, handled)
    modules = [name for cause in causes for name in _modules(cause)]
    package = _package(modules[0]) if modules else library
    version = installed_version(package) or "of unknown version"
    text = f"{type(causes[0]).__name__}: {' '.join(str(causes[0]).split())}"
    if isinstance(causes[0], ModuleNotFoundError):
        advice = f"run `pip install --upgrade {_package(causes[0].name)}`"
        return Fault(f"{package} {version} lacks {causes[0].name}", advice)
    if package in BUILT_FOR_TORCH:
        torch_version = installed_version("torch") or torch.__version__
        wanted = _pair(package, version, torch_version)
        command = f"pip install --force-reinstall --no-deps {package}=={wanted}"
        if build := torch_version.partition("+")[2]:
            command += f" --index-url {_INDEX}/{build}"
        found = f"{package} {version} does not fit torch {torch_version}, {package} {wanted} does"
        return Fault(f"{found} ({text})", f"run `{command}`")
    return Fault(
        f"{package} {version} cannot be imported ({text})",
        f"run `pip install --upgrade --force-reinstall --no-deps {package}`",
    )


def installed_version(package: str) -> str | None:
    """Return the version of a package that is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _causes(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """Return the exceptions that led to an error, the first one first."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) not in (None, handled):
        causes.append(cause)
    return causes[::-1]


def _modules(error: BaseException) -> list[str]:
    """Return the modules of other packages that were being imported, the innermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [f.f_globals["__name__"] for f in frames if f.f_code.co_name == "<module>"]
    return [name for name in reversed(modules) if _package(name) not in ("lrfast", "__main__")]


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _pair(package: str, version: str, torch_version: str) -> str:
    """Return the version and build of a package that the installed torch goes with."""
    release, plus, build = torch_version.partition("+")
    wanted = version.partition("+")[0]
    if package == "torchvision":  # torch 2.13.1 goes with torchvision 0.28.1
        _, minor, patch = release.split(".")[:3]
        wanted = f"0.{int(minor) + 15}.{patch}"
    return f"{wanted}{plus}{build}"
