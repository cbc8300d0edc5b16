"""tools/page_outputs.py, which writes the outputs of pages, and compares them but for numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def load_tool(name: str) -> Any:
    """Return a script of tools/ as a module."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


page_outputs = load_tool("page_outputs")
