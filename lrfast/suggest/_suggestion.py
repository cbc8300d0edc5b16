"""What a rule answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Suggestion:
    """What a rule reads off a loss curve.

    Attributes:
        lr: the suggested learning rate, or None where the rule declines.
        rule: name of the rule, as `get` takes it.
        reason: one sentence that says why this rate, or why none.
        confidence: between 0 and 1, how clearly the curve falls at all: the share of the fall
            that noise does not explain. It does not promise that the rate trains well.
        index: position in the arrays given of the point the rule settled on; None without one.
        base_lr: the lower rate of a pair whose upper one is `lr`; None from a rule that gives one
            rate.
        next_range: first and last rate of a sweep that would show more; None where this one does.
    """

    lr: float | None
    rule: str
    reason: str
    confidence: float
    index: int | None = None
    base_lr: float | None = None
    next_range: tuple[float, float] | None = None


Rule = Callable[[ArrayLike, ArrayLike], Suggestion]


def declined(rule: str, reason: str, next_range: tuple[float, float] | None = None) -> Suggestion:
    """Return an answer without a rate."""
    return Suggestion(None, rule, reason, 0.0, next_range=next_range)
