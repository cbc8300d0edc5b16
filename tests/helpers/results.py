"""Results of range tests that no sweep has run for."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np

from lrfast import RangeTest
from lrfast.range_test._sweep import Sweep
from lrfast.suggest import Suggestion

NAN, INF = math.nan, math.inf
ONE_GROUP = ((1e-6, 1.0),)


def make_result(
    losses: Any = (3.0, 2.0, 1.0, 4.0),
    lr: float | None = 1e-3,
    ranges: Any = ONE_GROUP,
    reference: int = 0,
    suggestions: Any = (),
    **fields: Any,
) -> RangeTest:
    """A result whose rule "auto" suggests ``lr``; ``suggestions`` are added to that."""
    losses = np.array(losses, dtype=np.float64)
    first, last = ranges[reference]
    found = [Suggestion(lr, "auto", "a reason", 0.9), *suggestions]
    values: dict[str, Any] = {
        "lrs": np.geomspace(first, last, max(len(losses), 2))[: len(losses)],
        "losses": losses,
        "smoothed": losses.copy(),
        "derivative": np.full_like(losses, NAN),
        "sweep": Sweep("exp", max(len(losses), 2), ranges, reference),
        "suggestions": MappingProxyType({entry.rule: entry for entry in found}),
        "outcome": "completed",
        "seconds": 1.0,
    }
    return RangeTest(**(values | fields))
