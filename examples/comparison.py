"""What each stage of fine-tuning gains: the same labels and steps for every way to train."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lrfast
from lrfast.finetune import accuracy
from lrfast.range_test import RangeTest

Scores = dict[str, float]  # "valid_loss" and "accuracy"


@dataclass(frozen=True)
class Task:
    """Few labels to train on, others to judge by."""

    train: TensorDataset
    valid: TensorDataset


@dataclass(frozen=True)
class Plan:
    """How long everything takes; the others train for the steps of both stages in one cycle."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 30  # of each of the two stages
    batch: int = 16
    points: int = 50  # of a range test
    repeats: int = 1


@dataclass
class Row:
    """What one way of training, or a stage of it, reached: one entry per seed."""

    name: str
    scores: list[Scores] = field(default_factory=list)
    rates: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def values(self, key: str) -> Tensor:
        return torch.tensor([scores[key] for scores in self.scores], dtype=torch.float64)


class Run:
    """One model in training: a fine-tuner that remembers its range tests and stages."""

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[nn.Module],
        task: Task,
        plan: Plan,
        seed: int,
        way: str = "one rate",  # a variant's name stands behind those of its stages
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(
            task.train, num_samples=plan.steps * plan.batch, generator=generator
        )
        self.plan = plan
        self.suffix = "" if way in WAYS else f", {way}"
        self.tests: list[RangeTest] = []
        self.rules: list[str] = []  # whose rates were taken
        self.stages: list[tuple[str, Scores, str, float]] = []
        self.tuner = lrfast.FineTuner(
            model,
            DataLoader(task.train, plan.batch, sampler=sampler),
            DataLoader(task.valid, 100),
            loss_fn=nn.functional.cross_entropy,
            optimizer=functools.partial(lrfast.AdamW, state_dtype="8bit")
            if way == SMALL_STATES
            else lrfast.AdamW,
            metrics={"accuracy": accuracy},
            groups=groups,
            progress=False,
        )

    def lr_find(self) -> RangeTest:
        plan = self.plan
        self.tests.append(
            self.tuner.lr_find(num_iter=plan.points, repeats=plan.repeats, adaptive=True)
        )
        return self.tests[-1]

    def rates(self, test: RangeTest) -> list[float]:
        """The suggested rates; where "auto" declines, those of "minimum", which always answers."""
        rule = "minimum" if test.suggestion.lr is None else "auto"
        self.rules.append(rule)
        return test.suggested_lrs(rule)

    def fit(self, name: str, stages: int, max_lr: lrfast.groups.Rates, began: float) -> None:
        """Trains for the steps of so many stages in one cycle, and keeps what that reached."""
        stage = self.tuner.fit_one_cycle(stages, max_lr)
        peaks = [f"{peak:.1e}" for peak in stage.rates.max(axis=0) if peak == peak]
        rates = peaks[0] if peaks[0] == peaks[-1] else f"{peaks[0]} to {peaks[-1]}"
        scores = {key: stage.epochs[-1][key] for key in ("valid_loss", "accuracy")}
        if self.rules[-1] != "auto":
            rates += f" ({self.rules[-1]})"
        self.stages.append((name + self.suffix, scores, rates, time.perf_counter() - began))


def untrained(run: Run) -> None:
    """The model as it comes, with whatever head it has."""
    began = time.perf_counter()
    run.stages.append(("not trained", run.tuner.validate(), "", time.perf_counter() - began))


def two_stages(run: Run) -> None:
    """The head, then all layers, at rates that fall towards the input.

    Stage 2 starts from a tenth of the head's rate, or from what its own range test suggests where
    that is lower, and the first layers get a tenth of it.
    """
    began = time.perf_counter()
    run.tuner.freeze()
    head_rates = run.rates(run.lr_find())
    run.fit("two stages: head", 1, head_rates, began)
    run.tuner.unfreeze()
    top = min(head_rates[-1] / 10, run.rates(run.lr_find())[-1])
    run.fit("two stages: then all layers", 1, slice(top / 10, top), began)


def head_only(run: Run) -> None:
    began = time.perf_counter()
    run.tuner.freeze()
    run.fit("head only", 2, run.rates(run.lr_find()), began)


def one_rate(run: Run) -> None:
    """All layers at the rate that the range test suggests."""
    began = time.perf_counter()
    run.fit("all layers at one rate", 2, run.rates(run.lr_find()), began)


Way = Callable[[Run], None]
WAYS: dict[str, Way] = {
    "not trained": untrained,
    "two stages": two_stages,
    "head only": head_only,
    "one rate": one_rate,
}
SMALL_STATES = "states in 8 bits"
VARIANTS: dict[str, Way] = {SMALL_STATES: one_rate}


def compare(
    make_run: Callable[[int, str], Run],
    plan: Plan,
    variants: dict[str, Way] = VARIANTS,
    *,
    console: Console,
) -> tuple[list[Row], dict[str, Run]]:
    """Trains every way, and its variants, with every seed.

    Args:
        make_run: Makes the run of a seed, for the way of that name.
        plan: The seeds.
        variants: What is trained besides `WAYS`, by name.
        console: Where progress goes.

    Returns:
        One row per stage, in order, and the first seed's runs by the way's name.
    """
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    for seed in plan.seeds:
        for name, way in (WAYS | variants).items():
            run = make_run(seed, name)
            way(run)
            runs.setdefault(name, run)
            for title, scores, rates, seconds in run.stages:
                row = rows.setdefault(title, Row(title))
                row.scores.append(scores)
                row.rates.append(rates)
                row.seconds.append(seconds)
                console.print(f"seed {seed}, {title}: {scores['accuracy']:.1%}")
    return list(rows.values()), runs


def few_labels(inputs: Tensor, classes: Tensor, per_class: int, judged: int, seed: int) -> Task:
    """Draws so many examples of each class to train on, and so many of the rest to judge by."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    train: list[Tensor] = []
    rest: list[Tensor] = []
    for value in classes.unique():
        index = order[classes[order] == value]
        train.append(index[:per_class])
        rest.append(index[per_class:])
    drawn = torch.cat(train)
    kept = torch.cat(rest)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))][:judged]
    return Task(
        TensorDataset(inputs[drawn], classes[drawn]), TensorDataset(inputs[kept], classes[kept])
    )


def plot(run: Run, folder: Path, name: str) -> list[Path]:
    """Draws a run's range tests on one picture and its training on another."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}_range_tests.png", folder / f"{name}_history.png"]
    first, *others = run.tests
    first.compare(*others, path=paths[0], labels=["head", "all layers"][: len(run.tests)])
    run.tuner.history.plot(paths[1])
    return paths
