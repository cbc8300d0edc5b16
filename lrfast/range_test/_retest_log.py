"""What a re-test did, as its log keeps it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lrfast._utils.validation import any_number, entries, mapping, short, text, whole

Trigger = Literal["every", "plateau", "unfreeze"]
RetestOutcome = Literal["applied", "kept", "declined", "over budget"]


@dataclass(frozen=True)
class RetestEntry:
    """What one re-test did.

    Args:
        epoch: Epochs that had ended.
        trigger: "every", "plateau" or "unfreeze".
        outcome: "applied" (the rates have changed), "kept" (the suggestion is too near to them),
            "declined" (the rule suggests none) or "over budget" (no test has run).
        reason: One sentence that says why.
        old: Peak rate of each param group before, [groups].
        new: Peak rate of each param group since, [groups].
        seconds: What the range test took.
        confidence: The suggestion's, in [0, 1]; None where no test has run.
    """

    epoch: int
    trigger: Trigger
    outcome: RetestOutcome
    reason: str
    old: tuple[float, ...]
    new: tuple[float, ...]
    seconds: float
    confidence: float | None

    @classmethod
    def from_dict(cls, data: Any) -> RetestEntry:
        """Return the entry that a checkpoint holds.

        Args:
            data: The entry as plain data.

        Raises:
            ValueError: If it holds none.
        """
        names = [field.name for field in fields(cls)]
        if mapping("an entry of the log", data, names).keys() != set(names):
            raise ValueError(f"an entry of the log must hold {names}, got {short(data)}")
        confidence = data["confidence"]
        return cls(
            epoch=whole("epoch", data["epoch"]),
            trigger=text("trigger", data["trigger"], get_args(Trigger)),  # type: ignore[arg-type]
            outcome=text("outcome", data["outcome"], get_args(RetestOutcome)),  # type: ignore[arg-type]
            reason=text("reason", data["reason"]),
            old=_rates("old", data["old"]),
            new=_rates("new", data["new"]),
            seconds=any_number("seconds", data["seconds"]),
            confidence=None if confidence is None else any_number("confidence", confidence),
        )


def _rates(name: str, value: Any) -> tuple[float, ...]:
    return tuple(any_number(name, rate) for rate in entries(name, value))
