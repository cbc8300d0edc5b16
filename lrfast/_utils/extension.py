"""Access to the compiled engine, loaded when it is first needed.

Groups, suggestions and the tables of schedules work without it.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch


@functools.cache
def extension() -> ModuleType:
    """Return the compiled module ``lrfast._C``."""
    try:
        module = importlib.import_module("lrfast._C")
    except ImportError as error:
        raise ImportError(
            f"lrfast's compiled engine cannot be loaded ({error}): build it against the installed "
            f"torch {torch.__version__} with `pip install --no-build-isolation --force-reinstall "
            "--no-deps .` in lrfast's source folder; `lrfast doctor` says more"
        ) from error
    built, running = module.torch_version, torch.__version__
    # torch's C++ interface is stable within a release, major and minor.
    if built.split(".")[:2] != running.split(".")[:2]:
        raise ImportError(
            f"lrfast was built against torch {built} and runs with torch {running}: build it again "
            "with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        )
    return module
