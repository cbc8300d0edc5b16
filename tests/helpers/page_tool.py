"""Scripts of tools/ as modules, and how outputs and pictures of pages are compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

# Share of the pixels: two runs that differ in their seed alone draw 2 % of them otherwise.
SAME_RUN = 0.01
# A run under another torch differs from the first update on.
PINS = (Path(__file__).parents[2] / "requirements" / "dev.txt").read_text()
IS_PINNED_TORCH = f"\ntorch=={torch.__version__.partition('+')[0]}\n" in PINS


def load_tool(name: str) -> Any:
    """Return a script of tools/ as a module."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


# Compares text but for what machines differ in.
page_outputs = load_tool("page_outputs")


def shows_same_run(one: Any, other: Any) -> bool:
    """Whether two pictures may be of one run; they need not where torch is not the pinned one."""
    return not IS_PINNED_TORCH or differing(one, other) < SAME_RUN


def differing(one: Any, other: Any) -> float:
    """Share of the pixels that differ between two pictures; all if their sizes do."""
    return float((abs(one - other).max(-1) > 0.25).mean()) if one.shape == other.shape else 1.0
