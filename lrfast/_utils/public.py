"""The public home of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, get_type_hints

_Class = TypeVar("_Class", bound=type)


def public_in(package: str) -> Callable[[_Class], _Class]:
    """Return a decorator that lets a class name the package that exports it as its module.

    Pickles refer to that name, so that a class may move between private modules.
    """

    def move(cls: _Class) -> _Class:
        cls.__annotations__ = get_type_hints(cls)  # the package may not know the names in them
        cls.__module__ = package
        return cls

    return move
