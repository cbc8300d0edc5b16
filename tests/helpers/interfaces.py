"""The public names of lrfast's modules, with what each takes, as plain data.

`python tests/helpers/interfaces.py` adds those that are new to `data/public_names.json`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lrfast

NAMES = Path(__file__).parents[1] / "data" / "public_names.json"
# Packages whose names are public elsewhere.
_INTERNAL = ("lrfast.tools", "lrfast.training")
Interface = dict[str, Any]  # a signature by name; of a class, those of its methods by theirs


def public_modules() -> Iterator[str]:
    """The names of all modules without an underscore."""
    yield "lrfast"
    for found in pkgutil.walk_packages(lrfast.__path__, "lrfast."):
        if "._" not in found.name and not found.name.startswith(_INTERNAL):
            yield found.name


def interface(module: str, names: list[str] | None = None) -> Interface:
    """What a module's public names take.

    Args:
        module: Its name.
        names: Which; those that it has not are left out. None: all that it lists in ``__all__`` or
            defines itself; what it has imported is no part of it.
    """
    tree = _tree(module)
    if module.startswith("lrfast.integrations."):  # needs a trainer's library: read, not imported
        found = {node.name: node for node in tree.body if isinstance(node, _DEFINITIONS)}
        return {name: _read(node) for name, node in found.items() if not name.startswith("_")}
    imported = importlib.import_module(module)
    if names is None:
        candidates = sorted({*listed(module), *_defined(tree)})
        names = [name for name in candidates if not name.startswith("_")]
    return {name: _described(getattr(imported, name)) for name in names if hasattr(imported, name)}


def listed(module: str) -> list[str]:
    """What a module lists in ``__all__``."""
    if module.startswith("lrfast.integrations."):
        return []
    return sorted(getattr(importlib.import_module(module), "__all__", ()))


def signature(function: Any) -> str:
    """Arguments and defaults, without annotations: aliases of types may change their names."""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_plain(parameter.default))
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


class _Named:
    """Stands for a default that is a class or function, which may move to another module."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value.__qualname__)


def _plain(default: Any) -> Any:
    is_named = default is not inspect.Parameter.empty and hasattr(default, "__qualname__")
    return _Named(default) if is_named else default


def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text())


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _described(value: Any) -> Any:
    if isinstance(value, ModuleType):
        return "module"
    if not inspect.isclass(value):
        return signature(value) if inspect.isfunction(value) else "value"
    members = {"__init__": _constructor(value)}
    for name in sorted(dir(value)):
        owner = next((cls for cls in value.__mro__ if name in vars(cls)), None)
        if name.startswith("_") or owner is None or not owner.__module__.startswith("lrfast"):
            continue
        member = inspect.getattr_static(value, name)
        function = getattr(member, "__func__", member)  # of a class or static method
        kind = "" if function is member else f"{type(member).__name__} "
        is_function = inspect.isfunction(function)
        members[name] = kind + signature(function) if is_function else type(member).__name__
    return members


def _constructor(cls: type) -> str:
    try:
        return signature(cls)
    except ValueError:  # a class of C without one
        return "unknown"


def _read(node: ast.ClassDef | ast.FunctionDef) -> Any:
    if isinstance(node, ast.ClassDef):
        methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        named = [each for each in methods if each.name == "__init__" or each.name[0] != "_"]
        return {each.name: _read(each) for each in named}
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    # What checks arguments keeps a signature as it is.
    decorators = [ast.unparse(each) for each in node.decorator_list]
    others = [each for each in decorators if each != "checked"]
    return " ".join([*others, f"({ast.unparse(node.args)})"])


def main() -> None:
    """Add to the record what is new; what is on record stays as it is."""
    attributes = sorted(name for name in dir(lrfast) if not name.startswith("_"))
    recorded = json.loads(NAMES.read_text()) if NAMES.exists() else {"dir(lrfast)": attributes}
    for module in public_modules():
        before = recorded.get(module, {})
        names = sorted({*before.get("__all__", ()), *listed(module)})
        recorded[module] = interface(module) | before | {"__all__": names}
    NAMES.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
