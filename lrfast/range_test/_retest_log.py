"""What a re-test did, as its log keeps it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lrfast._utils.validation import (
    check_dict,
    check_float,
    check_int,
    check_list,
    check_str,
    short_repr,
)

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
        if check_dict("an entry of the log", data, names).keys() != set(names):
            raise ValueError(f"an entry of the log must hold {names}, got {short_repr(data)}")
        confidence = data["confidence"]
        return cls(
            epoch=check_int("epoch", data["epoch"]),
            trigger=check_str("trigger", data["trigger"], get_args(Trigger)),  # type: ignore[arg-type]
            outcome=check_str("outcome", data["outcome"], get_args(RetestOutcome)),  # type: ignore[arg-type]
            reason=check_str("reason", data["reason"]),
            old=_rates("old", data["old"]),
            new=_rates("new", data["new"]),
            seconds=check_float("seconds", data["seconds"]),
            confidence=None if confidence is None else check_float("confidence", confidence),
        )


def _rates(name: str, value: Any) -> tuple[float, ...]:
    return tuple(check_float(name, rate) for rate in check_list(name, value))
