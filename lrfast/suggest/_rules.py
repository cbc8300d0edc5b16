"""Suggestion methods by name."""

from __future__ import annotations

from typing import Final

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_key
from lrfast.suggest._auto import auto
from lrfast.suggest._descents import cyclic, last_decreasing, longest_descent
from lrfast.suggest._fastai import minimum, slide, steep, valley
from lrfast.suggest._flat import flat
from lrfast.suggest._suggestion import Rule

_RAW: Final[tuple[Rule, ...]] = (longest_descent, last_decreasing, flat, cyclic, auto)
_RULES: Final[tuple[Rule, ...]] = (steep, minimum, valley, slide, *_RAW)


def names() -> tuple[str, ...]:
    """Return the names of all suggestion methods, which `get` takes.

    Example:
        >>> names()[:4]
        ('steep', 'minimum', 'valley', 'slide')
    """
    return tuple(rule.__name__ for rule in _RULES)


@checked
def get(name: str) -> Rule:
    """Return the suggestion method of that name, a function of learning rates and losses.

    Args:
        name: One of `names`.

    Raises:
        ValueError: If there is no such method; the message names the nearest one.

    Example:
        >>> get("valley").__name__
        'valley'
    """
    return check_key("name", name, {rule.__name__: rule for rule in _RULES})


@checked
def reads_raw(name: str) -> bool:
    """Return whether a method reads raw losses, which it smooths itself, or smoothed ones.

    Args:
        name: One of `names`.
    """
    return any(rule.__name__ == name for rule in _RAW)
