"""The stages that the recipe's defaults were chosen from, at rates of two range tests per draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lrfast import demo
from lrfast.demo import Digits, Task
from lrfast.finetune import FineTuner
from lrfast.finetune._recipe._recipe import suggested

EPOCHS = sum(demo.EPOCHS)


@dataclass(frozen=True)
class Choice:
    """A head's stage and one of all layers, each one cycle.

    Args:
        head: Epochs of the head alone; all layers have the others of `EPOCHS`. 0: one stage.
        top: Whose range test the head's rate in the second stage comes from: that of all layers
            before training or, as in the first stage, that of the head alone.
        over: What that rate is divided by.
        spread: The head's rate over the first layer group's.
    """

    head: int
    top: Literal["before", "head"]
    over: float = 1.0
    spread: float = 1.0

    @property
    def name(self) -> str:
        top = self.top if self.over == 1 else f"{self.top} / {self.over:g}"
        if not self.head:
            return f'one uniform rate, "{top}"'
        return f"{self.head} + {EPOCHS - self.head}, {top}, spread {self.spread:g}"


CHOICES = (
    Choice(0, "before"),
    *(Choice(1, "before", spread=spread) for spread in (1, 3, 10)),
    *(Choice(2, "before", spread=spread) for spread in (1, 3)),
    Choice(1, "before", over=3, spread=3),
    *(Choice(1, "head", over, 3) for over in (1, 3, 10)),
    Choice(1, "head", spread=10),
    Choice(3, "head", over=10, spread=10),
)


def accuracies(body: nn.Module, task: Task, draw: int) -> Iterator[tuple[str, float]]:
    """Yields the name of each choice and the validation accuracy that it reaches."""
    before = suggested(_tuner(body, task, draw).lr_find(adaptive=True), "all layers")[0]
    head_tuner = _tuner(body, task, draw)
    head_tuner.freeze()
    head = suggested(head_tuner.lr_find(adaptive=True), "the head")[0]
    for choice in CHOICES:
        tuner = _tuner(body, task, draw)
        if choice.head:
            tuner.freeze()
            tuner.fit_one_cycle(choice.head, head)
            tuner.unfreeze()
        top = {"before": before, "head": head}[choice.top] / choice.over
        rates = top if choice.spread == 1 else slice(top / choice.spread, top)
        tuner.fit_one_cycle(EPOCHS - choice.head, rates)
        yield choice.name, tuner.history.epochs[-1]["accuracy"]


def _tuner(body: nn.Module, task: Task, draw: int) -> FineTuner:
    return demo.fine_tune(demo.transplant(body, draw), task, draw)[0]


def swapped(digits: Digits) -> Digits:
    """Returns the digits with the demo's two halves exchanged: 0 for 5, 5 for 0 and so on."""
    return Digits(digits.images, (digits.classes + 5) % 10)
