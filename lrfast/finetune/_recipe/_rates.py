"""The learning rates that a recipe takes from its range tests, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from lrfast.range_test import RangeTest


@dataclass(frozen=True)
class RateChoice:
    """Learning rates of a stage."""

    first: float
    last: float
    reason: str

    @property
    def rates(self) -> slice | float:
        """The learning rates as fit methods take them: a geometric spread, or one for all."""
        return self.last if self.first == self.last else slice(self.first, self.last)


def read(test: RangeTest, what: str) -> tuple[float, str]:
    """Return the learning rate that a range test suggests, and the reason.

    Without a suggestion it is a tenth of that of the lowest loss, which is method "minimum".
    """
    found = test.suggestion
    if found.lr is not None:
        return found.lr, f"the range test on {what} suggests {found.lr:.1e}"
    fallback = test.suggestions["minimum"]
    if fallback.lr is None:
        raise ValueError(
            f"recipe finds no rate in the range test on {what}: {found.reason}; {fallback.reason}"
        )
    return fallback.lr, (
        f"the range test on {what} has no suggestion ({found.reason}), so it is a tenth of the lr "
        f"at its lowest loss, {fallback.lr:.1e}"
    )


def head_choice(test: RangeTest) -> RateChoice:
    """Return the learning rate of the head."""
    lr, reason = read(test, "the head")
    return RateChoice(lr, lr, reason)


def before_choice(test: RangeTest, spread: float) -> RateChoice:
    """Return the learning rates of all layers from a range test before any training."""
    top, reason = read(test, "all layers before training")
    return RateChoice(top / spread, top, reason + _lower(spread))


def dropped_choice(head: float, drop: float, test: RangeTest, spread: float) -> RateChoice:
    """Return the learning rates of all layers from the head's, limited by a second range test."""
    top = head / drop
    reason = f"the head's own lr over {drop:g} is {top:.1e}"
    limit = test.suggestions["minimum"].lr
    if limit is None:
        reason += ", and the second range test names no limit"
    elif limit < top:
        top = limit
        reason = f"the loss gets worse from {10 * limit:.1e} on, and the head stays at a tenth"
    return RateChoice(top / spread, top, reason + _lower(spread))


def _lower(spread: float) -> str:
    return f"; the first group's is {spread:g} times lower" if spread > 1 else ""
