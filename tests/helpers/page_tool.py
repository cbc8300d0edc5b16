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


def may_show(made: Any, committed: Any, are_of_one_run: bool) -> bool:
    """Whether a committed picture may be what its code draws, `made`.

    It has to be the same if all numbers beside it are. Else a processor or a torch that calculates
    otherwise made it (with and without AVX-512 up to 2.7 % of the pixels differ, as with another
    seed), and only its size has to be the same.
    """
    if not are_of_one_run:
        return bool(made.shape == committed.shape)
    return not IS_PINNED_TORCH or differing(made, committed) < SAME_RUN


def differing(one: Any, other: Any) -> float:
    """Share of the pixels that differ between two pictures; all if their sizes do."""
    return float((abs(one - other).max(-1) > 0.25).mean()) if one.shape == other.shape else 1.0
