"""The table of all rules."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lrfast.suggest._auto import auto
from lrfast.suggest._descents import cyclic, last_decreasing, longest_descent
from lrfast.suggest._fastai import minimum, slide, steep, valley
from lrfast.suggest._flat import flat
from lrfast.suggest._suggestion import Rule

# `slide` stands here with its defaults; its options are there for those who call it directly.
_SMOOTHED: Final[Mapping[str, Rule]] = MappingProxyType(
    {"steep": steep, "minimum": minimum, "valley": valley, "slide": slide}
)
_RAW: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "longest_descent": longest_descent,
        "last_decreasing": last_decreasing,
        "flat": flat,
        "cyclic": cyclic,
        "auto": auto,
    }
)
_RULES: Final[Mapping[str, Rule]] = MappingProxyType({**_SMOOTHED, **_RAW})


def names() -> tuple[str, ...]:
    """Return the names of all rules, which `get` takes.

    Example:
        >>> names()[:4]
        ('steep', 'minimum', 'valley', 'slide')
    """
    return tuple(_RULES)


def get(name: str) -> Rule:
    """Return the rule of that name.

    Args:
        name: one of `names`.

    Returns:
        The rule, a function of rates and losses.

    Raises:
        ValueError: if there is no such rule; the message names the nearest one.

    Example:
        >>> get("valley").__name__
        'valley'
    """
    rule = _RULES.get(name)
    if rule is None:
        near = difflib.get_close_matches(str(name), _RULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name must be one of {', '.join(_RULES)}, got {name!r}{hint}")
    return rule


def reads_raw(name: str) -> bool:
    """Return whether a rule reads raw losses and smooths by itself, rather than smoothed ones.

    Args:
        name: one of `names`.
    """
    return name in _RAW
