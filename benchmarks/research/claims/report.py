"""What a result file says of the claims, as a page made from it alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.research.claims.experiments import EXPERIMENTS, Claim, Experiment
from benchmarks.research.claims.verdicts import RULE, Difference, claim_verdict, difference
from benchmarks.research.intervals import CONFIDENCE

RESULTS = provenance.RESULTS / "claims"
PAGE = provenance.ROOT / "docs" / "claims.md"

OPEN = """# What schedules and fine-tuning tricks are worth here

Of {count} claims, most of them from the literature, {reproduced} are reproduced on small tasks,
{refuted} are not, and {undecided} stay undecided. Rows that lose stay in.
[How it was measured](#how-it-was-measured) stands at the end.
"""

METHOD = f"""## How it was measured

Every claim says that one way to train reaches a lower validation loss than another, in as many
optimizer steps unless it says so itself. Both are trained on the same tasks, all of them small and
real, from the same weights, on the same batches, at the same grid of learning rates: powers of the
root of ten, which grow until no way to train has its best at an end. Each has the learning rate
with the best mean validation loss over the seeds that choose, and is judged with other seeds at it.
Losses are at most the untrained model's. The validation set that judges is the one that the
learning rates were chosen on, for both alike.

A difference is that of the losses, seed by seed, in percent: the geometric mean and the t interval
of its logarithm ({CONFIDENCE:.0%}, not corrected for their number). Where the interval lies below
0 the first way is better on the task, above 0 worse.

{RULE}
The rule was written down before any result was seen. What is true of small models in a few hundred
steps need not be true of large ones in many.
"""

SOURCE = """## Where the figures come from

`python -m benchmarks.research.claims --keep` measures, and `python -m benchmarks.research.claims
--page` writes this page from the result file alone. Seeds that choose: {choosing}; that judge:
{judging} (`--seeds`).

{sentence}
"""


def markdown(result: dict[str, Any]) -> str:
    """Returns the page."""
    found = [(each, claim) for each in EXPERIMENTS for claim in each.claims]
    rows = [_summary(claim, result["experiments"][each.name]) for each, claim in found]
    verdicts = [row[1].strip("*") for row in rows]
    lines = [
        OPEN.format(
            count=len(rows),
            reproduced=verdicts.count("reproduced"),
            refuted=verdicts.count("not reproduced"),
            undecided=verdicts.count("undecided"),
        ),
        *table(["claim", "verdict", "better", "undecided", "worse", "source"], rows, 2),
        "",
    ]
    for experiment in EXPERIMENTS:
        lines += _experiment(experiment, result["experiments"][experiment.name])
    seeds = {use: len(drawn) for use, drawn in result["seeds"].items()}
    source = SOURCE.format(**seeds, sentence=provenance.sentence(result))
    return "\n".join([*lines, METHOD, source])


def _differences(claim: Claim, tasks: dict[str, Any]) -> dict[str, Difference]:
    """Returns what a claim says of each task, by name."""
    return {
        name: difference(task["sides"][claim.side]["losses"], task["sides"][claim.rival]["losses"])
        for name, task in tasks.items()
    }


def _summary(claim: Claim, tasks: dict[str, Any]) -> list[str]:
    verdicts = [each.verdict for each in _differences(claim, tasks).values()]
    counts = [str(verdicts.count(kind)) for kind in ("better", "undecided", "worse")]
    return [claim.text, f"**{claim_verdict(verdicts)}**", *counts, claim.source]


def _experiment(experiment: Experiment, tasks: dict[str, Any]) -> list[str]:
    """Returns an experiment's tasks, all its sides, and its claims task by task."""
    names = [side.name for side in experiment.sides]
    lines = [
        f"## {experiment.name.capitalize()}",
        "",
        *table(
            ["task", "optimizer", "batch", "loss untrained", "accuracy untrained", "rates", ""],
            _task_rows(tasks),
        ),
        "",
        "Validation loss at the best rate, mean and standard deviation over the seeds that judge;",
        "in brackets that rate, and an asterisk where it is at an end of the grid:",
        "",
        *table(["task", *names], [_losses(task, names, name) for name, task in tasks.items()]),
        "",
        "Accuracy there; a task on which it stays at the untrained one has taught nothing, and its",
        "rows mean little:",
        "",
        *table(["task", *names], [_accuracies(task, names, name) for name, task in tasks.items()]),
        "",
        "Median over the grid's rates of the mean loss over the seeds that choose:",
        "",
        *table(["task", *names], [_medians(task, names, name) for name, task in tasks.items()]),
        "",
    ]
    for claim in experiment.claims:
        lines += _claim(claim, tasks)
    return lines


def _task_rows(tasks: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            task["optimizer"],
            str(task["batch_size"]),
            f"{task['untrained']:.3f}",
            _percent(task["untrained_accuracy"]),
            f"{task['rates'][0]:.1e} to {task['rates'][-1]:.1e}",
            ", ".join(task["tags"]),
        ]
        for name, task in tasks.items()
    ]


def _losses(task: dict[str, Any], sides: list[str], name: str) -> list[str]:
    cells = []
    for side in (task["sides"][each] for each in sides):
        at_end = side["best_rate"] in (task["rates"][0], task["rates"][-1])
        spread = np.std(side["losses"], ddof=1)
        rate = f"{side['best_rate']:.0e}{'*' if at_end else ''}"
        cells.append(f"{np.mean(side['losses']):.3f} ± {spread:.3f} ({rate})")
    return [name, *cells]


def _accuracies(task: dict[str, Any], sides: list[str], name: str) -> list[str]:
    found = [task["sides"][each]["accuracies"] for each in sides]
    return [name, *(_percent(None if each is None else float(np.mean(each))) for each in found)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _medians(task: dict[str, Any], sides: list[str], name: str) -> list[str]:
    grids = [np.array(task["sides"][each]["grid_losses"]) for each in sides]
    return [name, *(f"{np.median(grid.mean(1)):.3f}" for grid in grids)]


def _claim(claim: Claim, tasks: dict[str, Any]) -> list[str]:
    found = _differences(claim, tasks)
    verdict = claim_verdict([each.verdict for each in found.values()])
    rows = [
        [
            name,
            f"{100 * each.mean:+.1f} %",
            f"{100 * each.low:+.1f} to {100 * each.high:+.1f} %",
            each.verdict,
        ]
        for name, each in found.items()
    ]
    return [
        f"### {claim.text}: {verdict}",
        "",
        f"{claim.side} against {claim.rival} ({claim.source}).",
        "",
        *table(["task", "difference in loss", "interval", ""], rows),
        "",
    ]
