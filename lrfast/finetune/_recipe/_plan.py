"""The plan of a recipe as data: its checked arguments, and the stages that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from torch import nn

from lrfast._utils.public import public_in
from lrfast._utils.validation import check_at_least_1, check_choice, check_count, short_repr
from lrfast.finetune._callbacks import Tuner
from lrfast.finetune._stage_state import epoch_batches
from lrfast.groups._norms import statistics_layers
from lrfast.schedules._cycles import cycle_length

TopRateSource = Literal["before", "head"]


@dataclass(frozen=True)
class RecipeConfig:
    """The arguments of :meth:`FineTuner.recipe`, which documents them."""

    epochs: tuple[int, int]
    top: TopRateSource
    head_drop: float
    spread: float
    feature_epochs: int
    plain: Iterable[Any] | None
    cycle_mult: float | None

    def check(self, tuner: Tuner) -> None:
        """Check their ranges, and that they fit the tuner."""
        if not isinstance(self.epochs, tuple | list) or len(self.epochs) != 2:
            got = short_repr(self.epochs)
            raise ValueError(f"epochs must be two numbers, the head's and all layers', got {got}")
        for index, count in enumerate(self.epochs):
            check_count(f"epochs[{index}]", count)
        check_choice("top", self.top, get_args(TopRateSource))
        check_at_least_1("head_drop", self.head_drop)
        check_at_least_1("spread", self.spread)
        if len(tuner.groups) < 2:
            raise ValueError(
                "recipe needs a body and a head, two layer groups or more, got one; name them with "
                "FineTuner(groups=...)"
            )
        self._check_features(tuner)
        if self.cycle_mult is not None:
            self._check_cycles(tuner, self.cycle_mult)

    @property
    def cycles(self) -> int:
        """Cycles of the last stage; 0 if its epochs are not whole cycles."""
        if self.cycle_mult is None:
            return 1
        left, cycles = self.epochs[1], 0
        while left > 0:
            left -= cycle_length(1, self.cycle_mult, cycles)
            cycles += 1
        return cycles if left == 0 else 0

    def _check_features(self, tuner: Tuner) -> None:
        if self.feature_epochs == 0 and not isinstance(self.feature_epochs, bool):
            if self.plain is not None:
                raise ValueError("plain needs feature_epochs of 1 or more, got 0")
            return
        check_count("feature_epochs", self.feature_epochs)
        if self.plain is not None:
            epoch_batches(self.plain)
        if not isinstance(tuner.model, nn.Sequential) or tuner.loss_fn is None:
            raise TypeError(
                "feature_epochs needs an nn.Sequential of body and head and loss_fn(outputs, "
                f"targets), got {type(tuner.model).__name__} and loss_fn={tuner.loss_fn}"
            )

    def _check_cycles(self, tuner: Tuner, mult: float) -> None:
        check_at_least_1("cycle_mult", mult)
        if self.cycles == 0:
            lengths = [cycle_length(1, mult, k) for k in range(4)]
            sums = ", ".join(map(str, accumulate(lengths)))
            raise ValueError(
                f"epochs[1] must hold whole cycles ({sums} and so on for "
                f"cycle_mult={mult:g}), got {self.epochs[1]}"
            )
        if tuner.val_loader is None:
            raise ValueError("cycle_mult needs a val_loader, to see overfitting, got None")


@public_in("lrfast.finetune")
@dataclass(frozen=True)
class PlannedStage:
    """A stage of a recipe before it runs.

    Args:
        name: "head on features", "head" or "all layers".
        epochs: Passes over its training data; if it may end early, the most of them.
        steps: Updates in these epochs.
        frozen: Names of the layer groups that do not train.
        norms: What frozen normalisation layers do with their running statistics, in words.
        schedule: The policy, in words.
        rates: The source of its learning rates, in words.
        reason: Why the recipe has this stage, in words.
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
        """Whether the head trains on features that the frozen body computes once."""
        return self.name == "head on features"

    @property
    def trains_all(self) -> bool:
        """Whether all layer groups train."""
        return not self.frozen


def plan(tuner: Tuner, numbers: RecipeConfig) -> tuple[PlannedStage, ...]:
    """Return the stages that follow from the arguments; nothing runs."""
    body = tuple(group.name for group in tuner.groups[:-1])
    norms = ("statistics kept", "statistics move", "all train")
    if next(statistics_layers(tuner.model), None) is None:
        norms = ("none", "none", "none")
    schedules, source, stages = ("one cycle", "one cycle"), "range test on the head", []
    if epochs := numbers.feature_epochs:
        data = tuner.train_loader if numbers.plain is None else numbers.plain
        steps = epochs * -(-epoch_batches(data) // tuner.gradient_accumulation_steps)
        reason = "the frozen body need not be computed twice while nothing is augmented"
        words = (norms[0], "one cycle", source, reason)
        stages.append(PlannedStage("head on features", epochs, steps, body, *words))
        source = "as before"
    head, whole = numbers.epochs
    if (mult := numbers.cycle_mult) is not None:
        restarts = f"{numbers.cycles} cosines, each {mult:g} times as long, until overfitting"
        schedules = (f"{head} x cosine of 1 epoch", restarts)
    reason = "a new head's first gradients would spoil what is pretrained"
    words = (norms[1], schedules[0], source, reason)
    stages.append(PlannedStage("head", head, head * tuner.epoch_steps, body, *words))
    source = "range test on all, before training"
    if numbers.top == "head":
        source = f"the head's over {numbers.head_drop:g}, within a range test on all"
    source += f"; first group {numbers.spread:g} times lower"
    reason = "earlier layers hold what tasks share, and move less than the head"
    words = (norms[2], schedules[1], source, reason)
    stages.append(PlannedStage("all layers", whole, whole * tuner.epoch_steps, (), *words))
    return tuple(stages)
