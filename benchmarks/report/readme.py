"""Blocks of README and LoRA guide: what lrfast gains, by library and as ratios, as measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.provenance import RESULTS, ROOT, commit_of, newest, table
from benchmarks.report import headlines
from benchmarks.report.results import Result

README = ROOT / "README.md"
LORA = ROOT / "docs" / "guides" / "lora.md"
Tasks = Mapping[str, Mapping[str, Any]]

NEW = "sealed"  # tasks that nothing was chosen on, in a result file of the suggestions

# What suggests a learning rate, by its name in the result file.
LIBRARIES = {
    "auto": "**lrfast**, `auto`",
    "prior alone": "the usual learning rate, no range test (`prior alone`)",
    "fixed rate": "one learning rate per optimizer (`fixed rate`)",
    "slide": "fastai, `slide`",
    "valley": "fastai, `valley` (its default)",
    "ignite": "ignite",
    "torch-lr-finder": "torch-lr-finder",
    "lightning": "Lightning",
}


# Of the headlines: a gain of each kind, both ties and the loss.
SHOWN = (
    "AdamW step, 224 groups",
    "AdamW step, one tensor of 100 million",
    "clip, AdamW, average, schedule: ViT-S in 75 groups",
    "range test of a CNN, against torch-lr-finder",
    "captured step of a CNN on a CPU, against the same uncaptured",
)


def blocks(results: Mapping[str, Result], suggestions: Mapping[str, Any]) -> dict[str, str]:
    """Returns each block's text by its name between the markers."""
    _, result = headlines.newest(results)
    return {
        "gains": gains(result, suggestions),
        "suggestions": suggestion_table(suggestions),
        "speed": speed_table(result),
    }


def lora_blocks(results: Mapping[str, Result]) -> dict[str, str]:
    """Returns the block of the guide to LoRA: a step over the groups of many adapters."""
    _, result = headlines.newest(results)
    rows = [
        [label, *headlines.cells(*headlines.step(result, work, "lora", 224))]
        for work, label in (("AdamW", "AdamW"), ("whole update", "clip, AdamW, average, schedule"))
    ]
    header = ["median step over 224 groups, ms", "torch's fastest", "lrfast", "ratio"]
    text = (
        "224 pairs of (8, 512) and (512, 8), as one adapts a model of 7 billion weights, each pair "
        f"in a group of its own. {result['machine']}, torch {result['torch']}; "
        f"{commit_of(result)}; [Benchmarks](../benchmarks.md) has every row."
    )
    return {"lora": "\n".join([*table(header, rows, 1), "", text])}


def gains(result: Result, suggestions: Mapping[str, Any]) -> str:
    """Returns the three sentences of what one gets."""
    unseen = suggestions[NEW]
    regret = {name: _mean(unseen, name) for name in LIBRARIES}
    others = {
        "valley": "fastai's default",
        "torch-lr-finder": "torch-lr-finder",
        "lightning": "Lightning",
    }
    theirs = ", ".join(f"{label} {_percent(regret[name])}" for name, label in others.items())
    fused, own = headlines.step(result, "AdamW", "lora", 224)
    return "\n".join(
        [
            f"- **Better suggestions.** {len(unseen)} tasks that nothing was tuned on, trained at "
            f"the suggestion, end {_percent(regret['auto'])} above their best loss on average "
            f"({theirs}).",
            f"- **Faster steps.** AdamW over 224 parameter groups takes {_percent(own / fused)} of "
            "the time of torch's fastest; clipping, EMA and schedules come in the same pass.",
            "- **Nothing changed.** A range test changes 0 bits of weights, optimizer, data order "
            "and random numbers, and names what cannot be restored.",
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def suggestion_table(suggestions: Mapping[str, Any]) -> str:
    """Returns the mean regret of every library's suggestion."""
    unseen: Tasks = suggestions[NEW]
    seen: Tasks = {
        task: entry
        for name in suggestions
        if isinstance(suggestions[name], dict) and name != NEW
        for task, entry in suggestions[name].items()
        if isinstance(entry, dict) and "rules" in entry
    }
    lines = []
    for name, label in LIBRARIES.items():
        cells = [f"{_mean(tasks, name):.2f}" for tasks in (unseen, seen)]
        lines.append([label, *cells])
    header = ["suggestion", f"{len(unseen)} new tasks", f"{len(seen)} others"]
    text = (
        "Mean regret: how far the validation loss ends above that of a grid's best learning rate, "
        "as a fraction. lrfast's constants were chosen on the others. "
        f"{commit_of(dict(suggestions))}; [every task](docs/suggestions.md)."
    )
    return "\n".join([*table(header, lines, 1), "", text])


def _mean(tasks: Tasks, name: str) -> float:
    return float(np.mean([entry["rules"][name]["regret"] for entry in tasks.values()]))


def speed_table(result: Result) -> str:
    """Returns ratios of times, a tie and a loss among them."""
    timed = headlines.times(result)
    rows = [[title, headlines.cells(*timed[title])[-1]] for title in SHOWN]
    text = (
        "Time of torch's fastest over lrfast's: above 1, lrfast is faster. "
        f"{result['machine']}, torch {result['torch']}; {commit_of(result)}; "
        "[every row](docs/benchmarks.md)."
    )
    return "\n".join([*table(["", "ratio"], rows, 1), "", text])


def suggestions_result() -> dict[str, Any]:
    """Returns the newest committed result of benchmarks.research.suggestions."""
    return newest(RESULTS / "suggestions")
