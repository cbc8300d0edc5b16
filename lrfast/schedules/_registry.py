"""Schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_key
from lrfast.schedules import _basic, _convert, _cycles, _warmup
from lrfast.schedules._schedule import Schedule

_MAKERS: Final[tuple[Callable[..., Schedule], ...]] = (
    *(_basic.constant, _basic.cosine, _cycles.cyclic, _basic.exponential, _warmup.flat_cosine),
    *(_convert.from_function, _warmup.inverse_sqrt, _basic.linear, _basic.multistep),
    *(_warmup.cosine_with_warmup, _warmup.linear_with_warmup),
    *(_cycles.one_cycle, _basic.polynomial, _basic.rex, _cycles.sgdr, _warmup.slanted_triangular),
    *(_basic.staircase, _basic.step, _basic.sweep, _warmup.warmup, _warmup.wsd),
)


@checked
def get(name: str) -> Callable[..., Schedule]:
    """Return the function that makes schedules of that name.

    Args:
        name: Name of a function of this package that makes one schedule, such as "one_cycle".

    Raises:
        ValueError: If there is no such function; the message names the nearest one.

    Example:
        >>> from lrfast import schedules
        >>> schedules.get("cosine")(T_max=10).at(10)
        0.0
    """
    return check_key("name", name, {maker.__name__: maker for maker in _MAKERS})
