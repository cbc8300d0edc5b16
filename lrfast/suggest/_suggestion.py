"""The result of a suggestion method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from lrfast._utils.public import public_in


@public_in("lrfast.suggest")
@dataclass(frozen=True)
class Suggestion:
    """Learning rate that a method reads off a loss curve, with its reason.

    Attributes:
        lr: Suggested learning rate, or None for no suggestion.
        rule: Name of the method, as `get` takes it.
        reason: One sentence that says why this learning rate, or why none.
        confidence: How far the curve supports it, between 0 and 1: the fraction of the loss's fall
            that noise does not explain. It does not promise that the learning rate trains well.
        index: Index of the point that was chosen, in the arrays given; default None: no point.
        base_lr: Lower learning rate of a pair whose upper one is `lr`; default None: no pair.
        next_range: First and last learning rate of a sweep that would show more; default None.
        interval: Lower and upper learning rate, one standard deviation of what the method knows to
            either side; default None: it does not say. Of the range tests in docs/suggestions.md
            those of `auto` held the best learning rate in three of five.
    """

    lr: float | None
    rule: str
    reason: str
    confidence: float
    index: int | None = None
    base_lr: float | None = None
    next_range: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        lrs = " to ".join(f"{lr:.1e}" for lr in (self.base_lr, self.lr) if lr is not None)
        answer = "has no suggestion" if self.lr is None else f"suggests {lrs}"
        sure = f"confidence {self.confidence:.2f}"
        if self.interval is not None:
            sure += ", {:.1e} to {:.1e}".format(*self.interval)
        return f"{self.rule} {answer} ({sure}): {self.reason}"


Rule = Callable[[ArrayLike, ArrayLike], Suggestion]


def no_suggestion(
    rule: str, reason: str, next_range: tuple[float, float] | None = None
) -> Suggestion:
    """Return the result without a learning rate."""
    return Suggestion(None, rule, reason, 0.0, next_range=next_range)
