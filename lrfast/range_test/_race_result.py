"""What a race between suggested rates showed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Candidate:
    """One rate that took part in a race.

    Args:
        lr: Rate of the reference group.
        rule: Rule that suggested it.
        losses: Its loss after each round, [rounds]; NaN or infinite where it diverged.
        winner: Whether it won.
    """

    lr: float
    rule: str
    losses: tuple[float, ...]
    winner: bool


@dataclass(frozen=True)
class Race:
    """Candidates that trained from the same state, and how they did.

    Args:
        candidates: The rates that took part.
        steps: Updates that a candidate made which was never dropped.
        judged_by: "validation" or "training": whose losses decided.
        seconds: What it took.
    """

    candidates: tuple[Candidate, ...]
    steps: int
    judged_by: Literal["validation", "training"]
    seconds: float
