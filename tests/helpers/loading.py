"""Broken data for loaders, and what must not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny import bits

HUGE = 2**40  # elements, or bytes, that no machine has


def held(optimizer: Any) -> str:
    """All of it, in words."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return repr(bits([optimizer.state_dict(), params, optimizer.schedules]))


Change = Callable[[dict[str, Any]], Any]
