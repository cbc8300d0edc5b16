"""What the store says of the rules: a result file, tables and a plot made from it alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import lrfast
from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.suggestions import peers, regret
from benchmarks.suggestions.crossvalidate import CHOICES, cross_validate
from benchmarks.suggestions.held_out import HELD_OUT
from benchmarks.suggestions.regret import Landscape, Rule, Sweep
from benchmarks.suggestions.store import Store
from benchmarks.suggestions.sweeps import suggestions_from_curve
from benchmarks.suggestions.train import STEPS
from benchmarks.suggestions.verified import verdicts

CURVE_ALONE = "auto, curve alone"
# In a folder of its own: benchmarks.report takes every file beside it for timings.
RESULTS = provenance.RESULTS / "suggestions"

HEAD = f"""# How well suggested learning rates train

Every task is trained for {STEPS} steps with the one-cycle policy at 27 peak rates with 3 seeds, and
its rate is then read off 10 range tests by every rule. The regret of a rate is how much higher the
validation loss gets than at the best rate of the grid, as a fraction of the latter. It is at most
{regret.CAP:g}, and a rule that declines is charged the regret of the worst rate. Losses above the
untrained model's count as that. The share is the part of the gain from untrained to best that is
lost. lrfast's rules are those of `lrfast.suggest`, and `auto` knows the optimizer and the number of
parameters, as in `lr_find`; the others are formulas of what their libraries do, on the same raw
losses. Loss and accuracy are means over the seeds at the best rate, and the spread is the standard
deviation of the loss there.
"""


def rules() -> dict[str, Rule]:
    """Returns lrfast's rules and then the peers', by name."""
    ours = {name: partial(_ours, name) for name in lrfast.suggest.names()}
    theirs = {name: partial(_theirs, rule) for name, rule in peers.RULES.items()}
    return {**ours, CURVE_ALONE: _curve_alone, **theirs}


def _ours(name: str, sweep: Sweep) -> float | None:
    return suggestions_from_curve(sweep.lrs, sweep.losses, sweep.context)[name]


def _curve_alone(sweep: Sweep) -> float | None:
    """What "auto" says to those who pass it nothing but the curve."""
    return lrfast.suggest.auto(sweep.lrs, sweep.losses).lr


def _theirs(rule: peers.Rule, sweep: Sweep) -> float | None:
    return rule(sweep.lrs, sweep.losses)


def summarise(store: Store) -> dict[str, Any]:
    """Returns what a result file holds; no task where none is complete."""
    landscapes, others = regret.load(store), regret.load(store, HELD_OUT)
    return provenance.facts() | {
        "steps": STEPS,
        "cap": regret.CAP,
        "tasks": _tasks(landscapes),
        "held_out": _tasks(others),
        "cross_validated": cross_validate(landscapes) if len(landscapes) > 1 else {},
        "verified": verdicts([*landscapes, *others], store),
    }


def _tasks(landscapes: Sequence[Landscape]) -> dict[str, Any]:
    tasks = {landscape.task.name: _facts(landscape) for landscape in landscapes}
    for name, rule in rules().items():
        suggested = regret.suggested(landscapes, rule)
        for landscape, rates in zip(landscapes, suggested, strict=True):
            tasks[landscape.task.name]["rules"][name] = _verdict(landscape, rates)
    return tasks


def _facts(landscape: Landscape) -> dict[str, Any]:
    task = landscape.task
    best = int(landscape.means.argmin())
    accuracy = float(landscape.accuracy[best])
    return {
        "kind": task.kind,
        "optimizer": task.optimizer.__name__,
        "options": dict(task.options),
        "batch_size": task.batch_size,
        "tags": list(task.tags),
        "untrained": float(landscape.untrained.mean()),
        "best_rate": landscape.best_rate,
        "best_accuracy": None if math.isnan(accuracy) else accuracy,
        "rates": landscape.rates.tolist(),
        "valid_losses": landscape.means.tolist(),
        "valid_spread": landscape.valid.std(1, ddof=1).tolist(),
        "train_losses": landscape.train.mean(1).tolist(),
        "rules": {},
    }


def _verdict(landscape: Landscape, rates: Sequence[float | None]) -> dict[str, Any]:
    return {
        "regret": float(np.mean([landscape.regret(rate) for rate in rates])),
        "share": float(np.mean([landscape.share(rate) for rate in rates])),
        "rates": list(rates),
    }


def markdown(result: dict[str, Any]) -> str:
    """Returns a result file's tables."""
    tasks, others = result["tasks"], result["held_out"]
    return "\n".join(
        [
            HEAD,
            provenance.sentence(result),
            "",
            f"## Regret over {len(tasks)} tasks, {_sweeps(tasks)} range tests",
            "",
            *_rule_table(tasks),
            "",
            *_cross_validated(result["cross_validated"]),
            *_held_out(others),
            *_verified(result["verified"], others),
            "## Mean regret per task",
            "",
            *table(["task", *_rule_names(tasks)], _task_rows(tasks | others)),
            "",
            "## The tasks",
            "",
            *table(
                ["task", "optimizer", "batch", "untrained", "best", "spread", "at", "accuracy"],
                [_fact_row(name, task) for name, task in (tasks | others).items()],
            ),
            "",
        ]
    )


def _cross_validated(regrets: dict[str, float]) -> list[str]:
    if not regrets:
        return []
    worst = max(regrets, key=lambda task: regrets[task])
    mean = float(np.mean(list(regrets.values())))
    return [
        "With the constants of `auto` chosen on all tasks but the one that it is judged on, from",
        f"{len(CHOICES)} combinations, its mean regret is {mean:.3f} and its worst "
        f"{regrets[worst]:.3f}",
        f"({worst}).",
        "",
    ]


def _held_out(tasks: dict[str, Any]) -> list[str]:
    if not tasks:
        return []
    return [
        f"## Regret over {len(tasks)} other tasks, {_sweeps(tasks)} range tests",
        "",
        "They were first measured when the rules and all constants were as they are.",
        "",
        *_rule_table(tasks),
        "",
    ]


def _verified(found: dict[str, Any], held_out: dict[str, Any]) -> list[str]:
    if not found:
        return []
    sets = {
        "tasks": [name for name in found if name not in held_out],
        "other tasks": [name for name in found if name in held_out],
    }
    return [
        "## Rates that a race verified",
        "",
        f"`lr_find(verify={STEPS})`, judged on the validation data, three times per task. Its rate",
        "is trained with, as those of the grid are; a mean that beats the grid's best counts as 0.",
        "",
        *table(
            ["rate", "of", "mean", "median", "worst", "runs"],
            [
                row
                for title, names in sets.items()
                if names
                for row in _verified_rows(f"{len(names)} {title}", [found[n] for n in names])
            ],
        ),
        "",
        *table(
            ["task", "auto", "verified"],
            [[n, f"{t['first_regret']:.2f}", f"{t['regret']:.2f}"] for n, t in found.items()],
        ),
        "",
    ]


def _verified_rows(title: str, found: list[dict[str, Any]]) -> list[list[str]]:
    runs = f"{np.mean([count for task in found for count in task['runs']]):.1f}"
    return [
        _spread("auto in these range tests", title, [task["first_regret"] for task in found], ""),
        _spread("verified", title, [task["regret"] for task in found], runs),
    ]


def _spread(name: str, title: str, regrets: list[float], runs: str) -> list[str]:
    return [name, title, *(f"{f(regrets):.3f}" for f in (np.mean, np.median, np.max)), runs]


def _sweeps(tasks: dict[str, Any]) -> int:
    return sum(len(next(iter(task["rules"].values()))["rates"]) for task in tasks.values())


def _rule_table(tasks: dict[str, Any]) -> list[str]:
    columns = ["rule", "mean", "from scratch", "fine-tuning", "median", "worst", "worst task"]
    rows = (_rule_row(tasks, name) for name in _rule_names(tasks))
    return table([*columns, "share", "declined"], sorted(rows, key=lambda row: float(row[1])))


def _rule_names(tasks: dict[str, Any]) -> list[str]:
    return list(next(iter(tasks.values()))["rules"])


def _rule_row(tasks: dict[str, Any], name: str) -> list[str]:
    regrets = {task: entry["rules"][name]["regret"] for task, entry in tasks.items()}
    worst = max(regrets, key=lambda task: regrets[task])
    of_kind = [
        np.mean([regrets[task] for task, entry in tasks.items() if entry["kind"] == kind])
        for kind in ("scratch", "fine-tune")
    ]
    read = [entry["rules"][name] for entry in tasks.values()]
    declined = sum(rate is None for verdict in read for rate in verdict["rates"])
    share = np.mean([verdict["share"] for verdict in read])
    values = [np.mean(list(regrets.values())), *of_kind, np.median(list(regrets.values()))]
    cells = [f"{value:.3f}" for value in (*values, regrets[worst])]
    return [name, *cells, worst, f"{share:.3f}", str(declined)]


def _task_rows(tasks: dict[str, Any]) -> list[list[str]]:
    return [
        [task, *(f"{verdict['regret']:.2f}" for verdict in entry["rules"].values())]
        for task, entry in tasks.items()
    ]


def _fact_row(name: str, task: dict[str, Any]) -> list[str]:
    best = int(np.argmin(task["valid_losses"]))
    accuracy = task["best_accuracy"]
    return [
        name,
        task["optimizer"],
        str(task["batch_size"]),
        f"{task['untrained']:.3f}",
        f"{task['valid_losses'][best]:.3f}",
        f"{task['valid_spread'][best]:.3f}",
        f"{task['best_rate']:.1e}",
        "" if accuracy is None else f"{accuracy:.3f}",
    ]
