"""The page docs/in_warmup.md, made of a result file alone."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.research.in_warmup.measure import SEEDS, STRIDE, TASKS, WAYS

__all__ = ["PAGE", "RESULTS", "TASKS", "WAYS", "page"]

RESULTS = provenance.RESULTS / "in_warmup"
PAGE = provenance.ROOT / "docs" / "in_warmup.md"
AIM = 0.02


def page(result: dict[str, Any]) -> str:
    """Returns the page of a result file."""
    tasks, steps = result["tasks"], result["steps"]
    regrets = {way: [task["regret"][way] for task in tasks.values()] for way in WAYS}
    own, other, _ = WAYS
    differences = [a - b for a, b in zip(regrets[own], regrets[other], strict=True)]
    gap = mean(differences)
    verdict = "meets" if gap <= AIM else "misses"
    return "\n".join(
        [
            "# How well the warm-up serves as a range test",
            "",
            "| regret | mean | median | worst | steps per run |",
            "|---|---|---|---|---|",
            *(
                f"| {way} | {mean(values):.3f} | {median(values):.3f} | {max(values):.3f} "
                f"| {_steps(tasks, way)} |"
                for way, values in regrets.items()
            ),
            "",
            f"The aim is the mean regret of the separate sweep plus {AIM}. The warm-up {verdict} "
            f"it, with {gap:+.3f} over {len(tasks)} tasks, and is worse by more than {AIM} on "
            f"{sum(d > AIM for d in differences)} of them, better by more than {AIM} on "
            f"{sum(d < -AIM for d in differences)}.",
            "",
            f"{{py:func}}`lrfast.find_in_warmup` makes {steps} steps in all. The separate sweep is "
            f"that of the [study](suggestions.md), of up to 100 points, and {steps} steps of "
            f"training follow; in the last row those of 100 points are taken off the {steps}. "
            f"Tasks, schedule and regret are the study's (every {STRIDE}rd task in its order), "
            f"with {len(SEEDS)} seeds, against the best of its grid at commit "
            f"{result['study'][:10]}. A run that diverges or has no suggestion counts as untrained."
            " Runs scatter, so that a regret may be below 0.",
            "",
            *table(
                ["task", "optimizer", "best lr", "suggested lr", *WAYS],
                [
                    [
                        name,
                        task["optimizer"],
                        f"{task['best_rate']:.2g}",
                        _lrs(task["runs"][own]),
                        *(f"{task['regret'][way]:.3f}" for way in WAYS),
                    ]
                    for name, task in tasks.items()
                ],
            ),
            "",
            "Made by `python -m benchmarks.research.in_warmup --keep`, of the newest file in",
            "benchmarks/results/in_warmup/ alone.",
            "",
            provenance.sentence(result),
            "",
        ]
    )


def _steps(tasks: dict[str, Any], way: str) -> str:
    """Returns the steps of a run, from the fewest to the most."""
    made = [run["steps"] for task in tasks.values() for run in task["runs"][way] if run["steps"]]
    return f"{min(made)}" if min(made) == max(made) else f"{min(made)} to {max(made)}"


def _lrs(runs: list[dict[str, Any]]) -> str:
    return " ".join("none" if run["lr"] is None else f"{run['lr']:.2g}" for run in runs)
