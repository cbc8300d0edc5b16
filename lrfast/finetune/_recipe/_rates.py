"""Which rates a recipe takes from its range tests, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass

from lrfast.range_test import RangeTest


@dataclass(frozen=True)
class Choice:
    """Rates for a stage.

    Args:
        first: Of the first layer group that trains.
        last: Of the head.
        reason: Where they come from, in a sentence.
    """

    first: float
    last: float
    reason: str

    @property
    def rates(self) -> slice | float:
        """As the fit methods take them: a geometric spread, or one rate."""
        return self.last if self.first == self.last else slice(self.first, self.last)


def read(test: RangeTest, what: str) -> tuple[float, str]:
    """Return the rate that a range test suggests and the reason for it.

    Where "auto" declines it is a tenth of the rate of the lowest loss, which is rule "minimum".

    Args:
        test: The range test.
        what: What it was made on, such as "the head".

    Raises:
        ValueError: If neither rule names a rate.
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
        f"the range test on {what} does not say ({found.reason}), so it is a tenth of the rate of "
        f"its lowest loss, {fallback.lr:.1e}"
    )


def head_choice(test: RangeTest) -> Choice:
    """Return the head's rate."""
    lr, reason = read(test, "the head")
    return Choice(lr, lr, reason)


def before_choice(test: RangeTest, spread: float) -> Choice:
    """Return the rates of all layers from a range test before anything was trained."""
    top, reason = read(test, "all layers before training")
    return Choice(top / spread, top, reason + _lower(spread))


def dropped_choice(head: float, drop: float, test: RangeTest, spread: float) -> Choice:
    """Return the rates of all layers from the head's, within what a second range test allows.

    Args:
        head: The head's rate in its own stage.
        drop: How many times lower it is now.
        test: Range test on all layers after that stage.
        spread: Last over first group's rate.
    """
    top = head / drop
    reason = f"the head's own rate over {drop:g} is {top:.1e}"
    limit = test.suggestions["minimum"].lr
    if limit is None:
        reason += ", and the second range test names no limit"
    elif limit < top:
        top = limit
        reason = f"the loss gets worse from {10 * limit:.1e} on, and the head stays at a tenth"
    return Choice(top / spread, top, reason + _lower(spread))


def _lower(spread: float) -> str:
    return f"; the first group's is {spread:g} times lower" if spread > 1 else ""
