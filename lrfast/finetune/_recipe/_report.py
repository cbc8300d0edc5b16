"""Tables of a recipe: the stages planned, and planned against applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lrfast._utils.public import public_in
from lrfast._utils.tables import Table
from lrfast.finetune._history import Stage
from lrfast.finetune._recipe._plan import PlannedStage


@dataclass(frozen=True)
class RateChoice:
    """Learning rates of a stage, with the reason in words."""

    first: float
    last: float
    reason: str

    @property
    def rates(self) -> slice | float:
        """The learning rates as fit methods take them: a geometric spread, or one for all."""
        return self.last if self.first == self.last else slice(self.first, self.last)


@public_in("lrfast.finetune")
@dataclass(frozen=True)
class AppliedStage:
    """A stage of a recipe after it ran.

    Args:
        plan: The stage as it was planned.
        choice: Its learning rates, with the reason.
        rates: Planned peak learning rate of each param group; NaN if frozen.
        before: Validation before it; empty without validation data.
        stage: Its entry in the history.
    """

    plan: PlannedStage
    choice: RateChoice
    rates: tuple[float, ...]
    before: dict[str, float]
    stage: Stage

    @property
    def peaks(self) -> tuple[float, ...]:
        """Highest learning rate applied to each param group; NaN if frozen, or without a step."""
        if len(self.stage.losses) == 0:
            return (math.nan,) * len(self.rates)
        return tuple(self.stage.rates.max(axis=0).tolist())

    @property
    def after(self) -> dict[str, float]:
        """Validation after it; empty without validation data or a whole epoch."""
        last = self.stage.epochs[-1] if self.stage.epochs else {}
        return {name: value for name, value in last.items() if name != "step"}


def planned_table(stages: Sequence[PlannedStage]) -> Table:
    """Return a table of what is planned, one row per stage."""
    columns = (
        "stage",
        "epochs",
        "steps",
        "frozen",
        "batch norm",
        "schedule",
        "learning rates",
        "reason",
    )
    rows = [
        [_names(cell) if isinstance(cell, tuple) else str(cell) for cell in vars(each).values()]
        for each in stages
    ]
    return Table(columns, rows)


def applied_table(stages: Sequence[AppliedStage]) -> Table:
    """Return a table of planned against applied, one row per stage that ran."""
    columns = (
        *("stage", "steps planned", "steps applied", "peak lr planned", "peak lr applied"),
        *("before", "after", "outcome", "seconds"),
    )
    rows = [
        (
            *(each.plan.name, str(each.plan.steps), str(len(each.stage.losses))),
            *(_rates(each.rates), _rates(each.peaks)),
            *(_measures(each.before), _measures(each.after)),
            *(each.stage.outcome, f"{each.stage.seconds:.1f}"),
        )
        for each in stages
    ]
    return Table(columns, rows)


def _names(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{names[0]} to {names[-1]} ({len(names)})"
    return ", ".join(names) or "none"


def _rates(rates: Sequence[float]) -> str:
    """Return the learning rates of the groups, equal neighbours together, of many the ends."""
    names = ("frozen" if math.isnan(rate) else f"{rate:.1e}" for rate in rates)
    parts = [(shown, len(list(equal))) for shown, equal in groupby(names)]
    if len(parts) > 6:
        return f"{parts[0][0]} to {parts[-1][0]} ({len(rates)} groups)"
    return ", ".join(f"{count} x {shown}" if count > 1 else shown for shown, count in parts)


def _measures(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or "not validated"
