"""docs/why_not_just.md: what one would do instead, with its cost, and where it wins."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.report.readme import LIBRARIES, NEW
from benchmarks.research.suggestions import baselines, verified
from benchmarks.research.suggestions.report import chosen_on, cost

PAGE: Final = provenance.ROOT / "docs" / "why_not_just.md"
AUTO: Final = "auto"
METHODS: Final = (
    AUTO,
    verified.JUDGED,
    verified.ALONE,
    baselines.PRIOR,
    baselines.FIXED,
    *(
        name.format(runs)
        for runs in baselines.RUNS
        for name in (baselines.SEARCH, baselines.OPTUNA)
    ),
    *baselines.METHODS,
    "slide",
    "valley",
    "ignite",
    "torch-lr-finder",
    "lightning",
)


def page(text: str, result: dict[str, Any]) -> str:
    """Returns the page with a result file's table in place of the one that it has."""
    source = provenance.sentence(result)
    return provenance.with_blocks(text, {"answers": answers(result), "source": source})


def answers(result: dict[str, Any]) -> str:
    """Returns the table: a method's cost, its regrets, and where it beats `auto` most."""
    new, others = result[NEW], chosen_on(result)
    rows = []
    for name in METHODS:
        cells = [LIBRARIES.get(name, name), cost(name, result)]
        for tasks in (new, others):
            found = [
                each["rules"][name]["regret"] for each in tasks.values() if name in each["rules"]
            ]
            cells += (
                [f"{f(found):.2f}" for f in (np.mean, np.median, np.max)] if found else [""] * 3
            )
        rows.append([*cells, *_wins(new | others, name)])
    spread = ["mean", "median", "worst"]
    header = ["", "steps", *(f"{len(new)} new: {spread[0]}", *spread[1:])]
    header += [f"{len(others)} others: {spread[0]}", *spread[1:], "beats `auto` on", "most on"]
    return "\n".join(table(header, rows))


def _wins(tasks: dict[str, Any], name: str) -> list[str]:
    """On how many tasks a method has less regret than `auto`, and the largest of the gains."""
    regrets = {
        task: (entry["rules"][name]["regret"], entry["rules"][AUTO]["regret"])
        for task, entry in tasks.items()
        if name in entry["rules"]
    }
    if name == AUTO or not regrets:
        return ["", ""]
    wins = sum(own < auto for own, auto in regrets.values())
    best = max(regrets, key=lambda task: regrets[task][1] - regrets[task][0])
    own, auto = regrets[best]
    most = f"{best}, {own:.2f} for {auto:.2f}" if own < auto else ""
    return [f"{wins} of {len(regrets)}", most]
