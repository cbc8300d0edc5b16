"""What was measured, raw: one append-only file of JSON lines per task.

A line carries the fingerprint of its task's definition; lines of another definition are ignored,
so that a task that changed is measured again. A run that is cut short loses one line at most.
Other benchmarks keep what they measure here too, with a fingerprint of their own.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.research.suggestions import train
from benchmarks.research.suggestions.tasks import Task

PACKAGE = __name__.partition(".")[0]

Record = dict[str, Any]


class Named(Protocol):
    """What is measured: a task, or what another benchmark calls so."""

    @property
    def name(self) -> str: ...


def fingerprint(task: Task) -> str:
    """Returns a hash of all that the task and its training run through in these packages."""
    parts = [task.optimizer.__name__, repr(sorted(task.options.items()))]
    parts += [repr(task.batch_size), repr(task.steps)]
    return hashed((task.make, train.run), parts)


class Store:
    """The files of one folder.

    Args:
        folder: Where they are; it is made when the first line is written.
        fingerprint: Returns what changes with the definition of what is measured.
    """

    def __init__(self, folder: Path, fingerprint: Callable[[Any], str] = fingerprint) -> None:
        self.folder = folder
        self._fingerprint = fingerprint
        # Once per task: what runs is what was loaded, whatever becomes of the sources meanwhile.
        self._definitions: dict[str, str] = {}

    def add(self, task: Named, record: Record) -> None:
        """Appends a line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(task)
        with path.open("a+b") as file:
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
            line = {"task": task.name, "definition": self._definition(task)} | record
            file.write(json.dumps(line).encode() + b"\n")

    def records(self, task: Named, kind: str) -> list[Record]:
        """Returns the lines of one kind, "start", "run" or "sweep", of the task as it is now."""
        definition = self._definition(task)
        return [
            record
            for record in self._lines(task)
            if record["kind"] == kind and record["definition"] == definition
        ]

    def _definition(self, task: Named) -> str:
        if task.name not in self._definitions:
            self._definitions[task.name] = self._fingerprint(task)
        return self._definitions[task.name]

    def _lines(self, task: Named) -> Iterator[Record]:
        path = self._path(task)
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut short
                continue

    def _path(self, task: Named) -> Path:
        return self.folder / f"{task.name}.jsonl"


def hashed(entries: Iterable[Any], parts: Iterable[str]) -> str:
    """Returns a hash of functions and classes, of all that they name, and of further parts."""
    found: dict[str, str] = {}
    for entry in entries:
        _collect(entry, found)
    named = [f"{name} {found[name]}" for name in sorted(found)]
    return hashlib.sha256("\n".join([*parts, *named]).encode()).hexdigest()[:16]


def _collect(value: Any, found: dict[str, str], name: str = "") -> None:
    """Adds a function or class with all that it names, or a constant; others are no definition."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(entry, found, f"{name}.{key}")
    elif isinstance(value, int | float | str | tuple):
        found[name] = repr(value)
    elif inspect.isfunction(value) or inspect.isclass(value):
        name = f"{value.__module__}.{value.__qualname__}"
        if not value.__module__.startswith(PACKAGE) or name in found:
            return
        tree = _code(value)
        found[name] = ast.dump(tree)
        for named, entry in _named(tree, inspect.getmodule(value)):
            _collect(entry, found, named)


def _code(value: Any) -> ast.AST:
    """Returns the syntax tree of a function or class, without comments, layout and docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            del node.body[0]
    return tree


def _named(tree: ast.AST, module: Any) -> Iterator[tuple[str, Any]]:
    """Yields what code names: globals of its module, and of others of this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and hasattr(module, node.id):
            yield f"{module.__name__}.{node.id}", getattr(module, node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = getattr(module, node.value.id, None)
            if inspect.ismodule(other) and other.__name__.startswith(PACKAGE):
                yield f"{other.__name__}.{node.attr}", getattr(other, node.attr)
