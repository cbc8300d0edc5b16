"""What the store says of the rules: a result file, tables and a plot made from it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lrfast
from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.report.readme import LIBRARIES, NEW
from benchmarks.research.suggestions import baselines, estimated, peers, regret, verified
from benchmarks.research.suggestions.broad import BROAD, SEALED
from benchmarks.research.suggestions.crossvalidate import CHOICES, cross_validate
from benchmarks.research.suggestions.fresh import FRESH
from benchmarks.research.suggestions.held_out import HELD_OUT
from benchmarks.research.suggestions.rate_free import PLUS_SOURCE, WARM_UP
from benchmarks.research.suggestions.regret import Landscape, Rule, Sweep
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import NUM_ITER, suggestions_from_curve
from benchmarks.research.suggestions.tasks import TASKS, Task
from benchmarks.research.suggestions.train import STEPS
from benchmarks.research.suggestions.unseen import UNSEEN
from lrfast.range_test._priors import RatePrior

CHOSEN_ON = """\
What `auto` is made of was chosen with these in view: the form and the constants of the combination
of the usual learning rate and the curve with all of them, what it makes of the size of batches and
data with 41, what it makes of the size of the weights, and of targets that are numbers, with 54."""
NOT_CHOSEN_ON = """\
They were written down before anything was measured on them, and looked at once, after `auto` had
been changed for the last time; the two that took the most CPU time some hours later."""

# By what a result file calls them, in the order in which they were written down.
SETS = {
    "tasks": TASKS,
    "held_out": HELD_OUT,
    "unseen": UNSEEN,
    "fresh": FRESH,
    "broad": BROAD,
    NEW: SEALED,
}
CHOSEN = ("tasks", "held_out", "unseen", "fresh", "broad")

MOST_RUNS = 8  # of a race, without those of second seeds
NEAR = 0.05  # regret of a rate that is as good as the best

CURVE_ALONE = "auto, curve alone"
# In a folder of its own: benchmarks.report takes every file beside it for timings.
RESULTS = provenance.RESULTS / "suggestions"
PAGE = provenance.ROOT / "docs" / "suggestions.md"
PICTURE = "suggestions.svg"

# The first rows of the page: what people would otherwise use.
FIRST = (
    "auto",
    baselines.PRIOR,
    baselines.FIXED,
    verified.JUDGED,
    verified.ALONE,
    baselines.SEARCH.format(6),
    baselines.OPTUNA.format(6),
    baselines.OPTUNA.format(24),
    *baselines.METHODS,
    "slide",
    "valley",
    "torch-lr-finder",
    "lightning",
)
OPENING = """![Mean regret of every library's suggestion](images/{picture})

{table}

The regret of a learning rate is how much higher the validation loss ends than at the best learning
rate of a grid, as a fraction: 0.10 is a loss 10 % higher. lrfast's constants were chosen with the
{seen} others in view, and with none of the {unseen} new tasks. Every method and every task stand
below, then [how it was measured](#how-it-was-measured)."""

METHOD = f"""## How it was measured

Every task is trained for {STEPS} steps with the one-cycle policy at 27 peak learning rates with 3
seeds. Every method then suggests a learning rate from 10 range tests. The regret of a learning rate
is how much higher the validation loss gets than at the best one of the grid, as a fraction of the
latter. It is at most {regret.CAP:g}, and a method without a suggestion is charged the regret of the
worst learning rate. Losses above the untrained model's count as that. The share is the part of the
gain from untrained to best that is lost.

The fixed rate is the best one for the optimizer on tasks of other data; the prior is
`typical_rate` times `rate_scale`, which `auto` knows before it sees a curve. Random search and
Optuna 5.0.0, with its default sampler TPE, take the best of full runs at log-uniform rates from
1e-5 to 1, by the very losses that they are judged by, interpolated on the grid; means over 2000
random searches and 20 of Optuna. Tasks of {len(BROAD) + len(SEALED)} further kinds have 17 rates
instead of 27, one of them 9.

Prodigy, ScheduleFree-AdamW, ScheduleFree+, D-Adaptation and Muon have the same {STEPS} steps and 3
seeds. They take the place of the task's own optimizer, with its weight decay. Prodigy's and
D-Adaptation's factor falls from 1 as a cosine; so do Muon's learning rates, 0.02 for hidden
matrices and 3e-4 for all else, which AdamW trains. "No schedule" leaves the cosine out.
ScheduleFree has warm-up alone, by its definition. Models without hidden matrices have no row of
Muon, and neither has `mnist-widest-adamw`, the largest one, for its time.

ScheduleFree+ (arXiv 2605.19095) is its [authors' reference code]({PLUS_SOURCE})
at its defaults, without weight decay, and is told each loss before its update. In the row with
warm-up its learning rate rises over {WARM_UP} steps and its average begins after {2 * WARM_UP}, as
its authors advise. Where all gradients are 0 it divides by 0, and the training counts as diverged.

A race is `lr_find(verify={STEPS})` with a DataLoader that shuffles, three times per task. What it
answers is trained with, as the learning rates of the grid are, and a mean that beats the grid's
best counts as 0. Both races go by the loss that the model learns from, also on the two tasks of
policy gradients, whose loss does not say how good a policy is. They were run before
`auto` began, on 2026-11-30, to suggest less where a large network learns from few labels.

lrfast's methods are those of `lrfast.suggest`, and `auto` knows the optimizer, the number and size
of the parameters, the size of the batches and the number of classes to predict, as in `lr_find`
from a DataLoader. Of endless data it does not know the number of classes; with amounts unknown it
does not know the size of batches either. The others are formulas of what their libraries do, on the
same raw losses. Loss and accuracy are means over the seeds at the best learning rate, and the
spread is the standard deviation of the loss there."""


def rules() -> dict[str, Rule]:
    """Returns lrfast's rules and then the peers', by name."""
    read = _Ours()
    ours = {name: partial(read, name) for name in lrfast.suggest.names()}
    theirs = {name: partial(_theirs, rule) for name, rule in peers.RULES.items()}
    return {
        **ours,
        "auto, endless data": lambda sweep: _auto(sweep, sweep.endless),
        "auto, amounts unknown": lambda sweep: _auto(sweep, replace(sweep.context, scale=1.0)),
        "auto, curve alone": lambda sweep: _auto(sweep, RatePrior()),
        **theirs,
    }


class _Ours:
    """What lrfast's methods suggest, each curve read once for all of them."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Sweep, dict[str, float | None]]] = {}

    def __call__(self, name: str, sweep: Sweep) -> float | None:
        if id(sweep) not in self._read:
            found = suggestions_from_curve(sweep.lrs, sweep.losses, sweep.context)
            self._read[id(sweep)] = (sweep, found)
        return self._read[id(sweep)][1][name]


def _auto(sweep: Sweep, known: RatePrior) -> float | None:
    return lrfast.suggest.auto(sweep.lrs, sweep.losses, **asdict(known)).lr


def _theirs(rule: peers.Rule, sweep: Sweep) -> float | None:
    return rule(sweep.lrs, sweep.losses)


def newest(folder: Path) -> dict[str, Any]:
    """Returns the newest result file of a folder; nothing where there is none."""
    return provenance.newest(folder) if any(folder.glob("*.json")) else {}


def summarise(store: Store, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a result file holds; no task where none is complete.

    Args:
        store: What was measured.
        kept: A result file, for what the store lacks.
    """
    sets = {name: regret.load(store, tasks, kept.get(name)) for name, tasks in SETS.items()}
    seen = [landscape for name in CHOSEN for landscape in sets[name]]
    return provenance.facts() | {
        "steps": STEPS,
        "schedule_free_plus": PLUS_SOURCE,
        "cap": regret.CAP,
        **{
            name: _tasks(landscapes, seen, store, kept.get(name, {}))
            for name, landscapes in sets.items()
        },
        "intervals": {name: intervals(landscapes) for name, landscapes in sets.items()},
        "cross_validated": cross_validate(seen) if len(seen) > 1 else {},
    }


def landscape_of(task: Task, store: Store) -> Landscape | None:
    """Returns what was measured of a task, here or for the newest result file."""
    (name,) = (name for name, tasks in SETS.items() if task in tasks)
    return next(iter(regret.load(store, [task], newest(RESULTS).get(name))), None)


def _tasks(
    landscapes: Sequence[Landscape],
    seen: Sequence[Landscape],
    store: Store,
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    tasks = {landscape.task.name: facts(landscape) for landscape in landscapes}
    for name, rule in rules().items():
        suggested = regret.suggested(landscapes, rule)
        for landscape, rates in zip(landscapes, suggested, strict=True):
            tasks[landscape.task.name]["rules"][name] = verdict(landscape, rates)
    for landscape in landscapes:
        entry = tasks[landscape.task.name]
        rate, prior = baselines.fixed_rate(landscape, seen), landscape.sweeps[0].context
        entry["rules"] |= {
            baselines.FIXED: verdict(landscape, [rate]),
            baselines.PRIOR: verdict(landscape, [prior.usual]),
        }
        earlier = kept.get(landscape.task.name, {})
        entry["rules"] |= baselines.searched(landscape)
        entry["optuna"], found = baselines.optuna_searched(
            landscape, store, earlier.get("optuna", ())
        )
        entry["rules"] |= found
        entry["asked"], entry["estimates"] = estimated.estimates(
            landscape, store, earlier.get("asked", ())
        )
        entry["rate_free"] = baselines.rate_free(landscape, store, earlier.get("rate_free", {}))
        for method, losses in entry["rate_free"].items():
            entry["rules"][method] = baselines.judged(landscape, losses)
        entry["races"] = verified.verdicts(landscape, store, earlier.get("races", {}))
        for method in (verified.JUDGED, verified.ALONE):
            if method in entry["races"]:
                entry["rules"][method] = verified.judged(landscape, entry["races"][method])
    return tasks


def facts(landscape: Landscape) -> dict[str, Any]:
    task = landscape.task
    return {
        "kind": task.kind,
        "optimizer": task.optimizer.__name__,
        "options": dict(task.options),
        "tags": list(task.tags),
        **asdict(landscape.size),
        **asdict(landscape.grid),
        "best_rate": landscape.best_rate,
        "curves": regret.written_curves(landscape.sweeps),
        "rules": {},
    }


def verdict(landscape: Landscape, rates: Sequence[float | None]) -> dict[str, Any]:
    return {
        "regret": float(np.mean([landscape.regret(rate) for rate in rates])),
        "share": float(np.mean([landscape.share(rate) for rate in rates])),
        "rates": list(rates),
    }


def intervals(landscapes: Sequence[Landscape]) -> dict[str, list[float]]:
    """Returns how often the interval of `auto` holds the best rate, and one within 5 % of it."""
    found = {}
    for landscape in landscapes:
        held = []
        for sweep in landscape.sweeps:
            known = asdict(sweep.context)
            around = lrfast.suggest.auto(sweep.lrs, sweep.losses, **known).interval
            if around is not None:
                near = any(landscape.regret(rate) <= NEAR for rate in np.geomspace(*around, 30))
                held.append((around[0] <= landscape.best_rate <= around[1], near))
        if held:
            found[landscape.task.name] = np.mean(held, axis=0).tolist()
    return found


def page(text: str, result: dict[str, Any]) -> str:
    """Returns docs/suggestions.md with a result file's blocks in place of those that it has."""
    blocks = {"result": opening(result), "tables": tables(result).rstrip(), "method": METHOD}
    return provenance.with_blocks(text, blocks | {"source": provenance.sentence(result)})


def markdown(result: dict[str, Any]) -> str:
    """Returns a result file's tables, and what they are."""
    return "\n".join([tables(result), METHOD, "", provenance.sentence(result), ""])


def opening(result: dict[str, Any]) -> str:
    """Returns what the page begins with: a chart, and a few rows of it."""
    sets = (result[NEW], chosen_on(result))
    rows = []
    for name in FIRST:
        regrets = [
            [task["rules"][name]["regret"] for task in tasks.values() if name in task["rules"]]
            for tasks in sets
        ]
        cells = [f"{f(each):.2f}" if each else "" for each in regrets for f in (np.mean, np.max)]
        cells.insert(0, cost(name, result))
        short = [f"{len(each)} of {len(tasks)}" for each, tasks in zip(regrets, sets, strict=True)]
        partial_ = any(len(each) < len(tasks) for each, tasks in zip(regrets, sets, strict=True))
        label = LIBRARIES.get(name, name)
        rows.append([f"{label} (on {short[0]}, {short[1]})" if partial_ else label, *cells])
    unseen, seen = map(len, sets)
    header = ["suggestion", "cost", f"{unseen} new tasks", "worst", f"{seen} others", "worst"]
    return OPENING.format(
        picture=PICTURE, table="\n".join(table(header, rows)), unseen=unseen, seen=seen
    )


def cost(name: str, result: dict[str, Any]) -> str:
    """Returns the steps that a method takes besides those of the training, of most or on average.

    One training belongs to every method. A search ends with it: its best run is kept.
    """
    searches = (baselines.SEARCH, baselines.OPTUNA)
    runs = {each.format(runs): runs for each in searches for runs in baselines.RUNS}
    if name in runs:
        return f"{(runs[name] - 1) * STEPS:,}"
    if name in verified.METHODS:
        races = [task["races"].get(name, {}) for key in SETS for task in result[key].values()]
        updates = [count for race in races for count in race.get("updates", ())]
        return f"{NUM_ITER + np.mean(updates):,.0f}" if updates else ""
    free = (baselines.FIXED, baselines.PRIOR, *baselines.METHODS)
    return "0" if name in free else str(NUM_ITER)


def chosen_on(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the tasks that something was chosen on, by name."""
    return {task: entry for name in CHOSEN for task, entry in result[name].items()}


def mean_regret(tasks: Mapping[str, Any], method: str) -> float:
    """Returns the mean over the tasks that the method was measured on; NaN for none."""
    found = [task["rules"][method]["regret"] for task in tasks.values() if method in task["rules"]]
    return float(np.mean(found)) if found else math.nan


def tables(result: dict[str, Any]) -> str:
    """Returns a result file's tables."""
    seen, fresh = chosen_on(result), result[NEW]
    return "\n".join(
        [
            *_regrets(fresh, "tasks that nothing was chosen on", NOT_CHOSEN_ON),
            *_regrets(seen, "tasks", CHOSEN_ON),
            *_cross_validated(result["cross_validated"]),
            *_intervals(result["intervals"]),
            *_races(result),
            *_estimates(result),
            "## Mean regret per task",
            "",
            *table(["task", *_rule_names(seen | fresh)], _task_rows(seen | fresh)),
            "",
            "## The tasks",
            "",
            *table(
                ["task", "optimizer", "batch", "untrained", "best", "spread", "at", "accuracy"],
                [_fact_row(name, task) for name, task in (seen | fresh).items()],
            ),
            "",
        ]
    )


def _regrets(tasks: dict[str, Any], title: str, remark: str) -> list[str]:
    if not tasks:
        return []
    return [
        f"## Regret over {len(tasks)} {title}, {_sweeps(tasks)} range tests",
        "",
        *remark.splitlines(),
        "",
        *_rule_table(tasks),
        "",
    ]


def _cross_validated(families: dict[str, dict[str, float]]) -> list[str]:
    if not families:
        return []
    rows = []
    for title, regrets in families.items():
        worst = max(regrets, key=lambda task: regrets[task])
        mean = float(np.mean(list(regrets.values())))
        rows.append([f"the same {title}", f"{mean:.3f}", f"{regrets[worst]:.3f}", worst])
    return [
        f"What `auto` does with that one of {len(CHOICES)} combinations, of constants and of what",
        "it makes use of, which is best on all of these tasks but those with",
        "",
        *table(["left out", "mean", "worst", "worst task"], rows),
        "",
    ]


def _intervals(sets: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = []
    for title, names in ((f"{len(sets[NEW])} new tasks", [NEW]), ("others", CHOSEN)):
        held = [shares for name in names for shares in sets[name].values()]
        if held:
            rows.append([title, *(f"{100 * share:.0f} %" for share in np.mean(held, axis=0))])
    return [
        "The interval of `auto`, one standard deviation to either side, holds in this share of the",
        "range tests",
        "",
        *table(["of", "the best learning rate of the grid", "one within 5 % of its loss"], rows),
        "",
    ]


def _races(result: dict[str, Any]) -> list[str]:
    rows = []
    for title, tasks in (("new", result[NEW]), ("others", chosen_on(result))):
        for method in verified.METHODS:
            found = [task["races"][method] for task in tasks.values() if method in task["races"]]
            if found:
                rows.append([method, f"{len(found)} {title}", *_race_costs(found)])
    if not rows:
        return []
    return [
        "## What a race costs",
        "",
        f"`lr_find(verify={STEPS})` says before that it makes {MOST_RUNS * STEPS} updates at most,",
        f"and {STEPS} more for each winner beside a learning rate that diverges, or that it takes",
        "the time that `budget` gives it, here half of what the first race of the task has taken.",
        "Counted are the losses that the race trains on, apart from those of the range test.",
        "",
        *table(
            [
                "race",
                "tasks",
                "learning rates",
                "updates",
                "most",
                "counted over told",
                "time over budget",
                "at most",
                "no suggestion",
            ],
            rows,
            texts=2,
        ),
        "",
    ]


def _estimates(result: dict[str, Any]) -> list[str]:
    rows = [
        [which, *row]
        for which, tasks in (("new", result[NEW]), ("others", chosen_on(result)))
        for row in estimated.estimate_rows(tasks)
    ]
    if not rows:
        return []
    return [
        "## What the training's own warm-up shows",
        "",
        f"A training at a multiple of the best peak of the grid has made {estimated.STEPS} of its",
        f"{STEPS} steps. It keeps its peak, changes it to that of `Retest.estimate()`, at no step,",
        f"to that of a range test of {NUM_ITER} steps from where it is, or to the estimate where",
        "that test has no suggestion (`both`, as `Retest(curve=)`); or it goes by the prior alone.",
        "The mean regrets are those of whole trainings at these peaks.",
        "",
        *table(
            ["tasks", "peak over best", "count", "estimated", *estimated.WAYS],
            rows,
        ),
        "",
    ]


def _race_costs(found: list[dict[str, Any]]) -> list[str]:
    """The cells of a row: means and extremes over all races of some tasks."""

    def each(name: str) -> Any:
        return np.concatenate([races[name] for races in found])

    updates, counted = each("updates"), each("counted")
    made = updates > 0
    excess = float(np.max(np.abs(counted[made] / updates[made] - 1), initial=0.0))
    limits = [limit for races in found for limit in races["limit"] if limit is not None]
    over = np.array(each("seconds")) / limits if limits else np.array([])
    return [
        f"{each('candidates').mean():.1f}",
        f"{updates.mean():.0f}",
        str(updates.max()),
        f"{1 + excess:.2f}",
        f"{over.mean():.2f}" if limits else "",
        f"{over.max():.2f}" if limits else "",
        str(sum(rate is None for rate in each("rate"))),
    ]


def _sweeps(tasks: dict[str, Any]) -> int:
    return sum(len(next(iter(task["rules"].values()))["rates"]) for task in tasks.values())


def _rule_table(tasks: dict[str, Any]) -> list[str]:
    columns = ["method", "mean", "from scratch", "fine-tuning", "median", "worst", "worst task"]
    rows = (_rule_row(tasks, name) for name in _rule_names(tasks))
    return table([*columns, "share", "no suggestion"], sorted(rows, key=lambda row: float(row[1])))


def _rule_names(tasks: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for task in tasks.values() for name in task["rules"]))


def _rule_row(tasks: dict[str, Any], name: str) -> list[str]:
    count = len(tasks)
    tasks = {task: entry for task, entry in tasks.items() if name in entry["rules"]}
    label = name if len(tasks) == count else f"{name} (on {len(tasks)})"
    regrets = {task: entry["rules"][name]["regret"] for task, entry in tasks.items()}
    worst = max(regrets, key=lambda task: regrets[task])
    of_kind = [
        np.mean([regrets[task] for task, entry in tasks.items() if entry["kind"] == kind] or [0.0])
        for kind in ("scratch", "fine-tune")
    ]
    read = [entry["rules"][name] for entry in tasks.values()]
    unanswered = sum(rate is None for verdict in read for rate in verdict["rates"])
    share = np.mean([verdict["share"] for verdict in read])
    values = [np.mean(list(regrets.values())), *of_kind, np.median(list(regrets.values()))]
    cells = [f"{value:.3f}" for value in (*values, regrets[worst])]
    return [label, *cells, worst, f"{share:.3f}", str(unanswered)]


def _task_rows(tasks: dict[str, Any]) -> list[list[str]]:
    names = _rule_names(tasks)
    return [
        [task, *(f"{rules[n]['regret']:.2f}" if n in rules else "" for n in names)]
        for task, rules in ((task, entry["rules"]) for task, entry in tasks.items())
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
