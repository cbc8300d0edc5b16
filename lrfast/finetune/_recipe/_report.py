"""What a recipe shows: tables of what is planned, and of that against what was applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from lrfast._utils.public import public_in
from lrfast.finetune._history import Stage
from lrfast.finetune._recipe._plan import PlannedStage
from lrfast.finetune._recipe._rates import RateChoice
from lrfast.range_test._text import aligned

Rows = Sequence[Sequence[str]]

PLANNED: Final = ("stage", "epochs", "steps", "frozen", "batch norm", "schedule", "rates", "reason")
APPLIED: Final = (
    *("stage", "steps planned", "applied", "peak rates planned", "applied"),
    *("before", "after", "outcome", "seconds"),
)


@public_in("lrfast.finetune")
@dataclass(frozen=True)
class AppliedStage:
    """A stage of a recipe after it ran.

    Args:
        plan: What was planned.
        choice: Its rates, with the reason.
        rates: Planned peak rate of each param group; NaN where frozen.
        before: Validation before it; empty without validation data.
        stage: What happened.
    """

    plan: PlannedStage
    choice: RateChoice
    rates: tuple[float, ...]
    before: dict[str, float]
    stage: Stage

    @property
    def peaks(self) -> tuple[float, ...]:
        """Highest rate applied to each param group; NaN where frozen, or without a step."""
        if len(self.stage.losses) == 0:
            return (math.nan,) * len(self.rates)
        return tuple(self.stage.rates.max(axis=0).tolist())

    @property
    def after(self) -> dict[str, float]:
        """Validation after it; empty without validation data or a whole epoch."""
        last = self.stage.epochs[-1] if self.stage.epochs else {}
        return {name: value for name, value in last.items() if name != "step"}


def planned_rows(stages: Sequence[PlannedStage]) -> Rows:
    """Return one row of :data:`PLANNED` per stage."""
    return [
        (
            stage.name,
            str(stage.epochs),
            str(stage.steps),
            _names(stage.frozen),
            stage.norms,
            stage.schedule,
            stage.rates,
            stage.reason,
        )
        for stage in stages
    ]


def applied_rows(stages: Sequence[AppliedStage]) -> Rows:
    """Return one row of :data:`APPLIED` per stage."""
    return [
        (
            each.plan.name,
            str(each.plan.steps),
            str(len(each.stage.losses)),
            _rates(each.rates),
            _rates(each.peaks),
            _measures(each.before),
            _measures(each.after),
            each.stage.outcome,
            f"{each.stage.seconds:.1f}",
        )
        for each in stages
    ]


def text(columns: Sequence[str], rows: Rows) -> str:
    """Return a table as lines of text."""
    return aligned([columns, *rows])


def html(columns: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """Return a table, with notes below, as one element of HTML that needs nothing else."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div>{table}{below}</div>"


def _names(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{names[0]} to {names[-1]} ({len(names)})"
    return ", ".join(names) or "none"


def _rates(rates: Sequence[float]) -> str:
    """Rates per group, those of many groups by the ends; neighbours that are alike together."""
    parts: list[tuple[str, int]] = []
    for rate in rates:
        shown = "frozen" if math.isnan(rate) else f"{rate:.1e}"
        if parts and parts[-1][0] == shown:
            parts[-1] = (shown, parts[-1][1] + 1)
        else:
            parts.append((shown, 1))
    if len(parts) > 6:
        return f"{parts[0][0]} to {parts[-1][0]} ({len(rates)} groups)"
    return ", ".join(f"{count} x {shown}" if count > 1 else shown for shown, count in parts)


def _measures(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or "not validated"
