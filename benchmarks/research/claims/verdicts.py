"""When a claim counts as reproduced. Written down before any result was seen.

On a task: the differences of ln(loss), seed by seed, between the side that is said to be better and
its rival, and the t interval of their mean. The side is "better" where the whole interval is below
0, "worse" where it is above, else "undecided". Over the tasks: see `claim_verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.research.intervals import t_interval

RULE = """A claim is reproduced if its side is better on more than half of the tasks and worse on
none, not reproduced if it is worse on more tasks than it is better on, and undecided otherwise."""


@dataclass(frozen=True)
class Difference:
    """How much lower or higher a side's loss is than its rival's, as fractions of the latter.

    Args:
        mean: Geometric mean over the seeds, minus 1.
        low: The lower end of its interval.
        high: The upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the side is "better", "worse" or it is "undecided"."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "undecided"


def difference(losses: Sequence[float], rival: Sequence[float]) -> Difference:
    """Returns the paired difference of losses, one per seed, the same seeds in both."""
    logs = np.log(np.array(losses) / np.array(rival))
    return Difference(*(math.expm1(value) for value in t_interval(logs)))


def claim_verdict(verdicts: Sequence[str]) -> str:
    """Returns what the verdicts on the tasks come to, by `RULE`."""
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if better > len(verdicts) / 2 and worse == 0:
        return "reproduced"
    return "not reproduced" if worse > better else "undecided"
