"""Turns results into text: `python -m benchmarks.report` renders docs/benchmarks.md.

`python -m benchmarks.report --add build/bench.json` first keeps what `make bench` measured, medians
and quartiles without the raw timings, as a file of its own in benchmarks/results/. Tables come from
committed files only, and the rows that lrfast loses stay in.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
IMPLEMENTATIONS = ("lrfast", "torch-fused", "torch-foreach", "torch-forloop")


def keep(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns what a result file holds of pytest-benchmark's output."""
    rows = [
        {"group": row["group"], "median_us": round(1e6 * row["stats"]["median"], 2)}
        | row["extra_info"]
        for row in raw["benchmarks"]
    ]
    cpu = raw["machine_info"]["cpu"]
    return {
        "date": raw["datetime"][:10],
        "commit": raw["commit_info"]["id"],
        "dirty": raw["commit_info"]["dirty"],
        "machine": f"{cpu.get('brand_raw', 'unknown')}, {cpu.get('count')} cores",
        "python": raw["machine_info"]["python_version"],
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Returns one result file as Markdown."""
    first = result["rows"][0]
    dirty = ", with uncommitted changes" if result["dirty"] else ""
    lines = [
        f"## {first['device']}, {result['date']}",
        "",
        f"{result['machine']}; {first['threads']} threads; torch {first['torch']}, Python "
        f"{result['python']}; commit {result['commit'][:10]}{dirty}.",
        "",
        "| parameters, groups | " + " | ".join(IMPLEMENTATIONS) + " | fastest torch / lrfast |",
        "|---|" + "---:|" * (len(IMPLEMENTATIONS) + 1),
    ]
    for row in result["rows"]:
        medians = {name: q[1] for name, q in row.get("quartiles_us", {}).items()}
        peers = [median for name, median in medians.items() if name != "lrfast"]
        if not peers:
            continue
        cells = [f"{medians[name]:,.1f}" if name in medians else "" for name in IMPLEMENTATIONS]
        ratio = f"{min(peers) / medians['lrfast']:.2f}"
        lines.append(f"| {row['group'].split(': ')[1]} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def render() -> str:
    """Returns the page."""
    head = (
        "# Benchmarks\n\n"
        "Median time of one AdamW step in microseconds, on equal work: the same tensors, "
        "hyperparameters and gradients in place. `lora` is 448 tensors of 4,096 elements, `mlp` 6 "
        "tensors with 7 thousand, `vectors` 300 tensors of 64, `vit_small` 152 tensors with 22 "
        "million; the number behind the dash is that of param groups. Implementations took turns, "
        "step by step, in one process; machines are shared, so read ratios rather than times. "
        "The last column is above 1 where lrfast is faster.\n\n"
        "Made by `make bench` and `python -m benchmarks.report` from the files in "
        "benchmarks/results/.\n"
    )
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([head, *(table(result) + "\n" for result in results)])


def main() -> int:
    """Renders the page, after adding a run if there is one to add."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="pytest-benchmark's JSON of a run to keep")
    arguments = parser.parse_args()
    if arguments.add:
        result = keep(json.loads(arguments.add.read_text()))
        device = result["rows"][0]["device"].replace(" ", "-").lower()
        name = f"{result['date']}-{device}-{result['commit'][:10]}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
