"""docs/states_in_8_bits.md: its blocks, from the newest result files."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks import provenance
from benchmarks.provenance import table
from benchmarks.research.intervals import t_interval
from benchmarks.research.small_states import language, masters, tasks
from benchmarks.research.small_states.tasks import CODED, CONFIDENCE, FLOAT32, NUDGED, verdict
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.train import STEPS

# In a folder of its own: benchmarks.report takes every file beside it for timings.
RESULTS: Final = provenance.RESULTS / "small_states"
MASTERS: Final = {
    "bfloat16": provenance.RESULTS / "masters",
    "float16": provenance.RESULTS / "masters_float16",
}
PAGE: Final = provenance.ROOT / "docs" / "states_in_8_bits.md"
SHOWN: Final = (1000, 5000, 10_000, 20_000)  # steps of the language model

VERDICTS: Final = {
    "equal": "the whole interval within 2 %",
    "no worse": "no more than 2 % above, perhaps more than 2 % below",
    "undecided": "the interval holds 1 and ends above 1.02",
    "worse": "the whole interval above 1, and it ends above 1.02",
}


def collect(folder: Path) -> dict[str, Any]:
    """Returns what a result file holds."""
    return provenance.facts() | {
        "steps": STEPS,
        "seeds": tasks.SEEDS,
        "tasks": tasks.entries(Store(folder / "tasks", tasks.fingerprint)),
        "language": language.entry(Store(folder / "language", language.fingerprint)),
    }


def page(text: str, result: dict[str, Any], wider: dict[str, dict[str, Any]]) -> str:
    """Returns the page with the blocks of the result files in place of those that it has.

    Those of masters are by the dtype of the models.
    """
    blocks = {"tasks": _tasks(result), "source": provenance.sentence(result)}
    blocks |= {f"{half} masters": _masters(each, half) for half, each in wider.items()}
    if result["language"]:
        blocks["language"] = _language(result["language"])
    return provenance.with_blocks(text, blocks)


def _tasks(result: dict[str, Any]) -> str:
    """Returns the counts, and a row for each task that is not equal."""
    entries = result["tasks"]
    why = Counter(each["left_out"] for each in entries.values() if "left_out" in each)
    coded = {name: each for name, each in entries.items() if "ratios" in each}
    found = {name: verdict(each["ratios"][CODED]) for name, each in coded.items()}
    counts = Counter(found.values())
    rows = [[f"{name}: {text}", str(counts[name])] for name, text in VERDICTS.items()]
    rows += [[f"the same by construction: {tasks.UNCODED}", str(why[tasks.UNCODED])]]
    rows += [[f"the same by construction: {tasks.STATELESS}", str(why[tasks.STATELESS])]]
    rows += [[tasks.REFUSED, str(why[tasks.REFUSED])]]
    others = []
    for name, each in coded.items():
        if found[name] != "equal":
            cells = [_interval(each["ratios"][side]) for side in (CODED, NUDGED)]
            others.append([name, found[name], *cells, *_scatter(each["losses"])])
    header = ["task", "8 bits", "8 bits / float32", "float32, nudged / float32"]
    lines = [*table([f"{len(entries)} tasks", "count"], rows)]
    if others:
        header += ["scatter of pairs", "of seeds"]
        lines += ["", *table(header, others, texts=4)]
    return "\n".join(lines)


def _interval(found: list[float] | None) -> str:
    if found is None:
        return "not finite"
    middle, low, high = found
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _scatter(losses: dict[str, list[float | None]]) -> list[str]:
    """Returns standard deviations over seeds: of 8 bits over float32, and of float32 alone."""
    coded, wide = losses[CODED], losses[FLOAT32]
    pairs = [(a, b) for a, b in zip(coded, wide, strict=True) if a is not None and b is not None]
    ratios, alone = ([math.log(a / b) for a, b in pairs], [math.log(b) for _, b in pairs])
    return [f"{100 * statistics.stdev(logs):.0f} %" for logs in (ratios, alone)]


def _masters(result: dict[str, Any], half: str) -> str:
    """Returns the counts by weights and states, and the tasks where master bits are not enough."""
    entries = result["tasks"]
    trained = {name: each for name, each in entries.items() if "ratios" in each}
    sides = [side for side in masters.sides(half) if side != masters.EXACT]
    found = {
        side: {name: verdict(each["ratios"][side]) for name, each in trained.items()}
        for side in sides
    }
    rows = [
        [f"{name}: {text}", *(str([*found[side].values()].count(name)) for side in sides)]
        for name, text in VERDICTS.items()
    ]
    rows.append(["geometric mean of the tasks", *(_pooled(trained, side) for side in sides)])
    heads = [side.replace(", ", ", states in ") for side in sides]
    lines = table([f"{len(trained)} tasks, weights:", *heads], rows)
    doubtful = [
        name
        for name in trained
        if any(found[side][name] in ("undecided", "worse") for side in sides if "bit," in side)
    ]
    if doubtful:
        cells = [
            [
                name,
                str(len(trained[name]["losses"][masters.EXACT])),
                *(_interval(trained[name]["ratios"][side]) for side in sides),
            ]
            for name in doubtful
        ]
        lines += ["", *table(["task, weights:", "seeds", *heads], cells, texts=5)]
    seeds = [len(each["losses"][masters.EXACT]) for each in trained.values()]
    span = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    text = f"{span} seeds. {provenance.sentence(result)}"
    if unreached := sum("why" not in each for each in entries.values()) - len(trained):
        text += f" {unreached} other tasks were not reached."
    refused = [f"{name} ({each['why']})" for name, each in entries.items() if "why" in each]
    if refused:
        text += f" Not trained in {half}: {', '.join(refused)}."
    return "\n".join([*lines, "", text])


def _pooled(entries: dict[str, dict[str, Any]], side: str) -> str:
    """Returns the mean over the tasks of a side's ratios, and its interval."""
    ratios = [each["ratios"][side] for each in entries.values()]
    logs = [math.log(found[0]) for found in ratios if found is not None]
    middle, low, high = (math.exp(each) for each in t_interval(logs, CONFIDENCE))
    return _interval([middle, low, high])


def _language(entry: dict[str, Any]) -> str:
    """Returns the losses along the way, and the ratio at the end."""
    per_point = entry["steps"] // len(entry["valid"][FLOAT32][0])
    rows = []
    for step in SHOWN:
        at = [[run[step // per_point - 1] for run in entry["valid"][s]] for s in language.SIDES]
        cells = [", ".join(f"{loss:.4f}" for loss in losses) for losses in at]
        rows.append([f"{step:,}", *cells])
    text = (
        f"Validation losses of {len(entry['seeds'])} seeds; "
        f"{entry['parameters']:,} parameters, {entry['bytes'][CODED]:.2f} bytes of state for each "
        f"instead of {entry['bytes'][FLOAT32]:.2f}."
    )
    if entry["ratio"] is not None:
        middle, low, high = entry["ratio"]
        text += f" At the end 8 bits over float32 is {middle:.4f}, from {low:.4f} to {high:.4f}."
    return "\n".join([*table(["step", "float32", "8 bits"], rows), "", text])
