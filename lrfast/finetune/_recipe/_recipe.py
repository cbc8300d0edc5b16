"""The recipe for fine-tuning: a plan to read, to run, and to compare with what was done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING

from lrfast.finetune._callbacks import EarlyStop, Tuner
from lrfast.finetune._history import Stage
from lrfast.finetune._recipe._plan import PlannedStage, RecipeConfig, plan
from lrfast.finetune._recipe._report import AppliedStage, RateChoice, applied_table, planned_table
from lrfast.finetune._stage_state import group_rates
from lrfast.range_test import RangeTest

if TYPE_CHECKING:
    from rich.console import Group

_GOOD_ENDS = ("completed", "stopped")
_HEAD, _BEFORE = "the head", "all layers before training"  # range tests


@dataclass(frozen=True)
class _Begun:
    """A stage that has begun and is not in the report yet."""

    choice: RateChoice
    rates: tuple[float, ...]
    before: dict[str, float]
    stages: int  # in the history before it


class Recipe:
    """A plan for fine-tuning; :meth:`FineTuner.recipe` makes one.

    Printed, it is the table of its stages. Nothing runs before :meth:`run` or :meth:`run_next`;
    stage by stage gives, bit for bit, the same as all at once.

    Args:
        tuner: The :class:`FineTuner` that trains.
        numbers: The arguments of :meth:`FineTuner.recipe`.
    """

    def __init__(self, tuner: Tuner, numbers: RecipeConfig) -> None:
        numbers.check(tuner)
        self._tuner = tuner
        self._numbers = numbers
        self._stop = EarlyStop(patience=1, at="cycle")
        self._begun: _Begun | None = None
        self.stages: tuple[PlannedStage, ...] = plan(tuner, numbers)
        self.applied: list[AppliedStage] = []
        self.tests: dict[str, RangeTest] = {}

    @property
    def next_stage(self) -> PlannedStage | None:
        """The stage that :meth:`run_next` runs; None after the last one."""
        done = len(self.applied)
        return self.stages[done] if done < len(self.stages) else None

    def run(self) -> list[AppliedStage]:
        """Run the stages that are left, up to one that ends with a loss that is not finite.

        Returns:
            All stages that have run, each with its plan.

        Raises:
            ValueError: If a range test suggests no learning rate, or the recipe has run.
        """
        self.run_next()
        while self.next_stage is not None and self.applied[-1].stage.outcome in _GOOD_ENDS:
            self.run_next()
        return self.applied

    def run_next(self) -> AppliedStage:
        """Run the range tests that the next stage needs, then the stage.

        After an interruption it resumes the stage that was interrupted.

        Returns:
            The stage with its plan.

        Raises:
            ValueError: If a range test suggests no learning rate, or the recipe has run.
        """
        planned = self.next_stage
        if planned is None:
            raise ValueError(
                f"recipe must have a stage left, got all {len(self.stages)} run; make another one "
                "to train on"
            )
        with self._training_on(planned):
            stage = self._resume_begun() or self._begin(planned)
        begun, self._begun = self._begun, None
        assert begun is not None
        done = AppliedStage(planned, begun.choice, begun.rates, begun.before, stage)
        self.applied.append(done)
        return done

    def describe(self) -> str:
        """Return the plan: one column per stage."""
        return planned_table(self.stages).turned().text(80)

    def report(self) -> str:
        """Return planned against applied: one column per stage that ran, then the reasons."""
        if not self.applied:
            return "No stage has run yet."
        notes = (fill(note, 80, subsequent_indent="  ") for note in self._notes())
        return "\n".join([applied_table(self.applied).turned().text(80), *notes])

    __str__ = describe

    def __repr__(self) -> str:
        names = ", ".join(f"{stage.name}: {stage.steps} steps" for stage in self.stages)
        return f"Recipe({names}; {len(self.applied)} of {len(self.stages)} run)"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        shown = [planned_table(self.stages).turned().rich("Planned")]
        if not self.applied:
            return Group(*shown)
        return Group(
            *shown, applied_table(self.applied).turned().rich("Applied"), *map(Text, self._notes())
        )

    def _repr_html_(self) -> str:
        shown = planned_table(self.stages).html()
        if self.applied:
            notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
            shown += applied_table(self.applied).html() + notes
        return f"<div>{shown}</div>"

    def _notes(self) -> list[str]:
        notes = [
            f"Range test on {name}: {len(test.lrs)} points, {test.outcome}, {test.seconds:.1f} s."
            for name, test in self.tests.items()
        ]
        notes += [f"Rates of {each.plan.name}: {each.choice.reason}." for each in self.applied]
        left, last = self.next_stage, self.applied[-1]
        if left is not None and last.stage.outcome not in _GOOD_ENDS:
            outcome = last.stage.outcome
            notes.append(f"{left.name} was not run because {last.plan.name} is {outcome}.")
        return notes

    @contextmanager
    def _training_on(self, planned: PlannedStage) -> Iterator[None]:
        """Give the tuner the data and the early stop of a stage for the block."""
        tuner, train_loader = self._tuner, self._tuner.train_loader
        ends_early = planned.trains_all and self._numbers.cycle_mult is not None
        if planned.on_features and self._numbers.plain is not None:
            tuner.train_loader = self._numbers.plain
        if ends_early:
            tuner.callbacks.append(self._stop)
        try:
            yield
        finally:
            tuner.train_loader = train_loader
            if ends_early:
                tuner.callbacks.remove(self._stop)

    def _resume_begun(self) -> Stage | None:
        """Return the record of the stage that had begun, resumed if need be; None if none had."""
        history = self._tuner.history.stages
        if self._begun is None or len(history) == self._begun.stages:
            return None
        return self._tuner.resume() if history[-1].outcome == "interrupted" else history[-1]

    def _begin(self, planned: PlannedStage) -> Stage:
        tuner, numbers = self._tuner, self._numbers
        choice = self._choose(planned)
        if planned.trains_all:
            tuner.unfreeze()
        else:
            tuner.freeze()
        groups = tuner.optimizer.param_groups
        own = group_rates(tuner.optimizer, choice.rates, len(tuner.groups))
        peaks = tuple(
            math.nan if group.get("frozen") else rate
            for group, rate in zip(groups, own, strict=True)
        )
        before = {} if tuner.val_loader is None else tuner.validate()
        self._begun = _Begun(choice, peaks, before, len(tuner.history.stages))
        epochs, mult, is_plain = planned.epochs, numbers.cycle_mult, planned.on_features
        if mult is None or is_plain:
            return tuner.fit_one_cycle(epochs, choice.rates, precompute=is_plain)
        if planned.trains_all:
            return tuner.fit_sgdr(numbers.cycles, 1, choice.rates, cycle_mult=mult)
        return tuner.fit_sgdr(epochs, 1, choice.rates, cycle_mult=1.0)

    def _choose(self, planned: PlannedStage) -> RateChoice:
        """Return the learning rates of a stage; runs range tests that have not run yet."""
        numbers, tuner, is_before = self._numbers, self._tuner, self._numbers.top == "before"
        if not self.applied and is_before:
            tuner.unfreeze()
            self._test(_BEFORE)
        if not planned.trains_all:
            tuner.freeze()
            head, reason = suggested(self._test(_HEAD), _HEAD)
            return RateChoice(head, head, reason)
        if is_before:
            top, reason = suggested(self._test(_BEFORE), _BEFORE)
        else:
            tuner.unfreeze()
            head, _ = suggested(self._test(_HEAD), _HEAD)
            top, reason = _limited(head, numbers.head_drop, self._test("all layers"))
        if numbers.spread > 1:
            reason += f"; the first group's is {numbers.spread:g} times lower"
        return RateChoice(top / numbers.spread, top, reason)

    def _test(self, what: str) -> RangeTest:
        """Return the range test on what trains now, which runs once."""
        if what not in self.tests:
            self.tests[what] = self._tuner.lr_find(vary="same", adaptive=True)
        return self.tests[what]


def suggested(test: RangeTest, what: str) -> tuple[float, str]:
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


def _limited(head: float, drop: float, test: RangeTest) -> tuple[float, str]:
    """Return the head's learning rate over ``drop``, limited by a second range test."""
    top, limit = head / drop, test.suggestions["minimum"].lr
    reason = f"the head's own lr over {drop:g} is {top:.1e}"
    if limit is None:
        return top, f"{reason}, and the second range test names no limit"
    if limit < top:
        reason = f"the loss gets worse from {10 * limit:.1e} on, and the head stays at a tenth"
    return min(top, limit), reason
