"""The page docs/pretrained.md, made of a result file alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean, median
from typing import Any

import numpy as np

import lrfast
from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.research.pretrained.tasks import SEEN, TASKS
from benchmarks.research.suggestions import baselines, regret
from benchmarks.research.suggestions.regret import Landscape
from benchmarks.research.suggestions.report import facts, rules, verdict
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import context
from lrfast.training._data import DataSize

RESULTS = provenance.RESULTS / "pretrained"
PAGE = provenance.ROOT / "docs" / "pretrained.md"
FEW = "auto, few weights per label"
MOST = 30  # weights per label, beyond which the usual learning rate fell no further before
# What a user may go by, and what the page calls it.
SHOWN = {
    "auto": "**lrfast**, `auto`",
    FEW: f"the same, if it took no more than {MOST} weights per label into account",
    "flat": "lrfast, `flat`",
    baselines.PRIOR: "the usual learning rate, no range test",
    "valley": "fastai, `valley` (its default)",
    "slide": "fastai, `slide`",
    "torch-lr-finder": "torch-lr-finder",
    "lightning": "Lightning",
}
GOOD = 0.1  # of the lowest loss: learning rates this close to it are as good


def collect(store: Store, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result file of the tasks that are measured whole.

    Args:
        store: What was measured.
        kept: Entries of a result file, by task, for what the store lacks.
    """
    landscapes = regret.load(store, TASKS, kept)
    tasks = {each.task.name: facts(each) | {"seen": each.task.name in SEEN} for each in landscapes}
    for name, rule in rules().items():
        for landscape, rates in zip(landscapes, regret.suggested(landscapes, rule), strict=True):
            tasks[landscape.task.name]["rules"][name] = verdict(landscape, rates)
    for landscape in landscapes:
        usual = landscape.sweeps[0].context.usual
        tasks[landscape.task.name]["rules"] |= {
            baselines.PRIOR: verdict(landscape, [usual]),
            FEW: verdict(landscape, _with_few(landscape)),
        }
    return provenance.facts() | {"tasks": tasks}


def _with_few(landscape: Landscape) -> list[float | None]:
    """Returns what `auto` says if so many labels are told that `MOST` weights come on each."""
    size = landscape.size
    targets = max(size.targets or 0, math.ceil(size.parameters / MOST))
    known = asdict(context(landscape.task, size, DataSize(size.batch_size, targets)))
    return [lrfast.suggest.auto(each.lrs, each.losses, **known).lr for each in landscape.sweeps]


def page(result: Mapping[str, Any]) -> str:
    """Returns the page of a result file."""
    tasks = result["tasks"]
    new = [name for name, task in tasks.items() if not task["seen"]]
    seen = [name for name in tasks if name not in new]
    regrets = {
        rule: {name: task["rules"][rule]["regret"] for name, task in tasks.items()}
        for rule in SHOWN
    }
    lines = table(
        ["suggestion", f"{len(new)} new tasks", "median", "worst", f"{len(seen)} others", "worst"],
        [
            [
                title,
                f"{mean(regrets[rule][name] for name in new):.2f}",
                f"{median(regrets[rule][name] for name in new):.2f}",
                f"{max(regrets[rule][name] for name in new):.2f}",
                f"{mean(regrets[rule][name] for name in seen):.2f}",
                f"{max(regrets[rule][name] for name in seen):.2f}",
            ]
            for rule, title in SHOWN.items()
        ],
    )
    every = table(
        ["task", "weights", "best lr", "as good", "suggested", "regret", "loss", "accuracy"],
        [_row(name, task) for name, task in tasks.items()],
    )
    return "\n".join(
        [
            "# How well suggestions fine-tune pretrained networks",
            "",
            *lines,
            "",
            *TEXT.splitlines(),
            "",
            *every,
            "",
            "Made by `python -m benchmarks.research.pretrained --keep`, of the newest file in",
            "benchmarks/results/pretrained/ alone.",
            "",
            provenance.sentence(dict(result)),
            "",
        ]
    )


def _row(name: str, task: Mapping[str, Any]) -> list[str]:
    losses, rates = np.array(task["valid_losses"]), np.array(task["rates"])
    good = rates[losses <= (1 + GOOD) * losses.min()]
    found = task["rules"]["auto"]
    return [
        name + ("" if task["seen"] else " (new)"),
        f"{task['parameters']:,}",
        f"{task['best_rate']:.1e}",
        f"{good.min():.1e} to {good.max():.1e}",
        _suggested(found["rates"]),
        f"{found['regret']:.2f}",
        f"{losses.min():.3f}",
        f"{task['best_accuracy']:.1%}",
    ]


def _suggested(rates: Sequence[float | None]) -> str:
    return " ".join("none" if rate is None else f"{rate:.1e}" for rate in rates)


TEXT = """\
The networks of the [study of suggestions](suggestions.md) are small, and pretrained for 2,000
steps at most. These have up to 22.6 million weights, whose pretraining was another's: R-Net and
O-Net know faces, EfficientNet-Lite ImageNet's pictures, MiniLM sentences. Each gets a new head,
but for R-Net, and learns something else from few labels in 60 steps, all layers at one peak
learning rate of a one-cycle schedule. The regret is how much higher the validation loss ends than
at the best learning rate of a grid, as a fraction, in the mean over 3 range tests of 100 points;
all losses are means over 3 seeds.

The new tasks were measured after `auto` had been changed on 2026-11-30, for the others: before
that it ruined EfficientNet-Lite. A CREPE network that was to hear shapes of waves was measured,
too, and is left out, as no learning rate made its validation loss fall.

"As good" are learning rates whose loss is at most 10 % higher than the lowest one."""
