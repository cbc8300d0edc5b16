"""What becomes of a range test that a trainer's callback has run."""

from __future__ import annotations

from torch.optim import Optimizer

from lrfast import suggest
from lrfast.range_test import RangeTest


class Finder:
    """The part of a callback that knows the rule and keeps the results.

    Args:
        rule: Name of the rule whose rate is taken; None: that of :attr:`RangeTest.rule`.

    Raises:
        ValueError: If there is no such rule.
    """

    def __init__(self, rule: str | None = None) -> None:
        if rule is not None and rule != "verified":
            suggest.get(rule)
        self.results: list[RangeTest] = []
        self._rule = rule

    def _take(self, result: RangeTest, optimizer: Optimizer) -> None:
        """Keep a result, and let the optimizer go on at its rate where there is one."""
        self.results.append(result)
        if result.suggestions[self._rule or result.rule].lr is not None:
            result.apply(optimizer, self._rule)
