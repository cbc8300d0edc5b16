"""What a result file says of the recipe: the blocks of docs/recipe.md, made from it alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks import provenance
from benchmarks.provenance import table, with_blocks
from benchmarks.research.intervals import CONFIDENCE, t_interval
from benchmarks.research.recipe.choices import EPOCHS, Choice
from benchmarks.research.recipe.measure import BASELINES, RECIPE
from lrfast import demo

RESULTS = provenance.RESULTS / "recipe"
PAGE = provenance.ROOT / "docs" / "recipe.md"
DEFAULT = Choice(demo.EPOCHS[0], "before", spread=3).name
STEPS = EPOCHS * demo.PASSES * 5 * demo.LABELS_PER_DIGIT // demo.BATCH

# By half and name, one per draw; None where a variant has not run.
Accuracies = dict[str, dict[str, list[float | None]]]


def page(text: str, result: dict[str, Any]) -> str:
    """Returns the page with the blocks of a result file in place of those that it has."""
    return with_blocks(text, {"result": opening(result), "measured": section(result).rstrip()})


def opening(result: dict[str, Any]) -> str:
    """Returns the result: what the recipe gains over all draws, one row for each half."""
    methods = result["parts"]["methods"]["accuracies"]
    draws = range(_draws(result)[1].stop)
    rows = []
    for title, half in zip(result["titles"].values(), methods.values(), strict=True):
        recipe, best, difference, interval = _verdict(half, draws)[1:-1]
        rows.append([f"to {title}", recipe, difference, interval, best])
    lines = [
        *table(["validation accuracy", "recipe", "difference", "interval", "best baseline"], rows),
        "",
        f"Over {len(draws)} draws of the labels, in points, with the t interval of the "
        f"differences ({CONFIDENCE:.0%}). The baselines are one uniform rate, the head alone, and "
        "training from scratch; the best is named after the fact, which favours it.",
    ]
    return "\n".join(lines)


def section(result: dict[str, Any]) -> str:
    """Returns what was measured, how, and on what."""
    found: dict[str, Accuracies] = {
        name: part["accuracies"] for name, part in result["parts"].items()
    }
    titles = [f"to {title}" for title in result["titles"].values()]
    first, others = _draws(result)
    return "\n".join(
        [
            "## What its defaults were chosen on",
            "",
            f"Mean validation accuracy over {len(first)} draws of the labels, {STEPS} steps each: "
            "the demo's CNN, pretrained on half of the digits and fine-tuned on the other with "
            f"{demo.LABELS_PER_DIGIT} labels each. "
            '`a + b`: epochs of the head and of all layers; "before": the rate of a range test on '
            'all layers before training; "head / 10": a tenth of the head\'s rate. The rows share '
            "their range tests, made once per draw. The default is in bold.",
            "",
            *table(["stages", *titles], _choice_rows(found["choices"], first)),
            "",
            f"The recipe itself, with its own range tests, and on the {len(others)} draws "
            f"{others[0]} to {others[-1]} that nothing was chosen on:",
            "",
            *table(_method_header(titles, first, others), _method_rows(found, first, others)),
            "",
            "The recipe less the best of the three baselines, in points, with the t interval of "
            f"the differences draw by draw ({CONFIDENCE:.0%}). The best is named after the fact, "
            "by its mean over the same draws, which favours it:",
            "",
            *table(
                ["", "draws", "recipe", "best baseline", "difference", "interval", "reached"],
                _verdict_rows(found["methods"], titles, first, others),
            ),
            "",
            "## Where the figures come from",
            "",
            "Made by `python -m benchmarks.research.recipe --keep` and, from the result file "
            "alone, by `python -m benchmarks.research.recipe --page`; all values by draw are in "
            "[benchmarks/results/recipe](../benchmarks/results/recipe). One thread.",
            "",
            *(f"- {name}: {provenance.sentence(part)}" for name, part in result["parts"].items()),
            "",
        ]
    )


def _draws(result: dict[str, Any]) -> tuple[range, range]:
    """Returns the draws that the defaults were chosen on, and the others."""
    first = len(result["chosen_on"])
    accuracies = next(iter(result["parts"]["methods"]["accuracies"].values()))[RECIPE]
    return range(first), range(first, len(accuracies))


def _choice_rows(choices: Accuracies, first: range) -> list[list[str]]:
    rows = {
        name: [_mean(half[name], first) for half in choices.values()]
        for name in next(iter(choices.values()))
    }
    return [
        [f"**{name}**" if name == DEFAULT else name, *(f"{value:.1%}" for value in rows[name])]
        for name in sorted(rows, key=lambda name: -rows[name][0])
    ]


def _method_header(titles: list[str], first: range, others: range) -> list[str]:
    spans = [f"draws {each[0]} to {each[-1]}" for each in (first, others)]
    return ["", *(f"{title}, {span}" for title in titles for span in spans)]


def _method_rows(found: dict[str, Accuracies], first: range, others: range) -> list[list[str]]:
    rows = []
    for part in ("methods", "variants"):
        for name in next(iter(found[part].values())):
            values = [half[name] for half in found[part].values()]
            means = [_mean(each, draws) for each in values for draws in (first, others)]
            rows.append([name, *("" if math.isnan(mean) else f"{mean:.1%}" for mean in means)])
    return rows


def _verdict_rows(
    methods: Accuracies, titles: list[str], first: range, others: range
) -> list[list[str]]:
    return [
        [title, *_verdict(half, draws)]
        for title, half in zip(titles, methods.values(), strict=True)
        for draws in (first, others, range(others.stop))
    ]


def _verdict(methods: dict[str, list[float | None]], draws: range) -> list[str]:
    known = [name for name in BASELINES if not math.isnan(_mean(methods[name], draws))]
    best = max(known, key=lambda name: _mean(methods[name], draws))
    mean, low, high = t_interval(
        [100 * (methods[RECIPE][draw] - methods[best][draw]) for draw in draws]
    )
    return [
        f"{draws[0]} to {draws[-1]}",
        f"{_mean(methods[RECIPE], draws):.2%}",
        f"{best}, {_mean(methods[best], draws):.2%}",
        f"{mean:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        "yes" if mean >= 0 else "no",
    ]


def _mean(values: list[float | None], draws: range) -> float:
    """Returns the mean; NaN if a draw is missing."""
    known = [values[draw] for draw in draws]
    return math.nan if None in known else float(np.mean(known))
