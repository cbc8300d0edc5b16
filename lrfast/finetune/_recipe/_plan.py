"""What a recipe will do, as data: its numbers, checked, and the stages that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from lrfast.finetune._setup import check_whole, epoch_batches
from lrfast.groups._norms import statistics_layers
from lrfast.schedules._cycles import cycle_length

if TYPE_CHECKING:
    from lrfast.finetune._trainer import Trainer

Top = Literal["before", "head"]


@dataclass(frozen=True)
class Numbers:
    """The arguments of :meth:`FineTuner.recipe`, which explains them."""

    epochs: tuple[int, int]
    top: Top
    head_drop: float
    spread: float
    feature_epochs: int
    plain: Iterable[Any] | None
    cycle_mult: float | None

    def check(self, tuner: Trainer) -> None:
        """Check them against the tuner.

        Raises:
            TypeError, ValueError: If one is out of range or does not fit.
        """
        if not isinstance(self.epochs, tuple | list) or len(self.epochs) != 2:
            raise ValueError(
                f"epochs must be two numbers, the head's and all layers', got {self.epochs!r}"
            )
        for index, count in enumerate(self.epochs):
            check_whole(f"epochs[{index}]", count)
        if self.top not in get_args(Top):
            raise ValueError(f"top must be 'before' or 'head', got {self.top!r}")
        for name, value in (("head_drop", self.head_drop), ("spread", self.spread)):
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be finite and 1 or more, got {value}")
        if len(tuner.groups) < 2:
            raise ValueError(
                "recipe needs a body and a head, two layer groups or more, got one; name them with "
                "FineTuner(groups=...)"
            )
        self._check_features(tuner)
        if self.cycle_mult is not None:
            self._check_cycles(tuner)

    @property
    def cycles(self) -> int:
        """Cycles of the last stage; 0 if its epochs hold no whole number of them."""
        if self.cycle_mult is None:
            return 1
        count = length = 0
        while length < self.epochs[1]:
            length += cycle_length(1, self.cycle_mult, count)
            count += 1
        return count if length == self.epochs[1] else 0

    def _check_features(self, tuner: Trainer) -> None:
        if self.feature_epochs == 0 and not isinstance(self.feature_epochs, bool):
            if self.plain is not None:
                raise ValueError("plain needs feature_epochs of 1 or more, got 0")
            return
        check_whole("feature_epochs", self.feature_epochs)
        if self.plain is not None:
            epoch_batches(self.plain)
        if not isinstance(tuner.model, nn.Sequential) or tuner.loss_fn is None:
            raise TypeError(
                "feature_epochs needs an nn.Sequential of body and head and loss_fn(outputs, "
                f"targets), got {type(tuner.model).__name__} and loss_fn={tuner.loss_fn}"
            )

    def _check_cycles(self, tuner: Trainer) -> None:
        assert self.cycle_mult is not None
        if not 1 <= self.cycle_mult < math.inf:
            raise ValueError(f"cycle_mult must be finite and 1 or more, got {self.cycle_mult}")
        if self.cycles == 0:
            lengths = [cycle_length(1, self.cycle_mult, k) for k in range(4)]
            sums = ", ".join(str(sum(lengths[: k + 1])) for k in range(4))
            raise ValueError(
                f"epochs[1] must hold whole cycles ({sums} and so on for "
                f"cycle_mult={self.cycle_mult:g}), got {self.epochs[1]}"
            )
        if tuner.valid is None:
            raise ValueError("cycle_mult needs validation data to see overfitting, got valid=None")


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a recipe before it runs.

    Args:
        name: "head on features", "head" or "all layers".
        epochs: Passes over its training data; the most of them where it may end early.
        steps: Updates in them.
        frozen: Names of the layer groups that stay as they are.
        norms: What frozen normalisation layers do with their running statistics.
        schedule: The policy, in words.
        rates: Where its rates come from.
        reason: Why it is there.
    """

    name: str
    epochs: int
    steps: int
    frozen: tuple[str, ...]
    norms: str
    schedule: str
    rates: str
    reason: str

    @property
    def on_features(self) -> bool:
        """Whether the head trains on what the frozen body has computed once."""
        return self.name == "head on features"

    @property
    def trains_all(self) -> bool:
        """Whether all layer groups train."""
        return not self.frozen


def plan(tuner: Trainer, numbers: Numbers) -> tuple[PlannedStage, ...]:
    """Return the stages that the numbers ask of a tuner; nothing runs."""
    body = tuple(group.name for group in tuner.groups[:-1])
    has_norms = next(statistics_layers(tuner.model), None) is not None
    moving = "statistics move" if has_norms else "none"
    stages = []
    if numbers.feature_epochs:
        data = tuner.train if numbers.plain is None else numbers.plain
        stages.append(
            PlannedStage(
                name="head on features",
                epochs=numbers.feature_epochs,
                steps=numbers.feature_epochs * -(-epoch_batches(data) // tuner.accumulate),
                frozen=body,
                norms="statistics kept" if has_norms else "none",
                schedule="one cycle",
                rates="range test on the head",
                reason="the frozen body need not be computed twice while nothing is augmented",
            )
        )
    head, whole = numbers.epochs
    is_cycled = numbers.cycle_mult is not None
    stages.append(
        PlannedStage(
            name="head",
            epochs=head,
            steps=head * tuner.epoch_steps,
            frozen=body,
            norms=moving,
            schedule=f"{head} x cosine of 1 epoch" if is_cycled else "one cycle",
            rates="as before" if numbers.feature_epochs else "range test on the head",
            reason="a new head's first gradients would spoil what is pretrained",
        )
    )
    stages.append(
        PlannedStage(
            name="all layers",
            epochs=whole,
            steps=whole * tuner.epoch_steps,
            frozen=(),
            norms="all train" if has_norms else "none",
            schedule=_restarts(numbers) if is_cycled else "one cycle",
            rates=_top_in_words(numbers),
            reason="earlier layers hold what tasks share, and move less than the head",
        )
    )
    return tuple(stages)


def _restarts(numbers: Numbers) -> str:
    return f"{numbers.cycles} cosines, each {numbers.cycle_mult:g} times as long, until overfitting"


def _top_in_words(numbers: Numbers) -> str:
    source = "range test on all, before training"
    if numbers.top == "head":
        source = f"the head's over {numbers.head_drop:g}, within a range test on all"
    return f"{source}; first group {numbers.spread:g} times lower"
