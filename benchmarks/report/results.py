"""Result files: what is kept of a run, and reading them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, commit_of

Result = dict[str, Any]
Row = dict[str, Any]

SHARED = ("device", "torch", "threads")  # facts of a run that every row repeats


def keep(raw: dict[str, Any]) -> list[Result]:
    """Returns what result files, one per device, hold of pytest-benchmark's output."""
    cpu = raw["machine_info"]["cpu"]
    results: dict[str, Result] = {}
    for row in (benchmark["extra_info"] for benchmark in raw["benchmarks"]):
        facts = {
            "date": raw["datetime"][:10],
            "commit": raw["commit_info"]["id"],
            "dirty": raw["commit_info"]["dirty"],
            "machine": f"{cpu.get('brand_raw', 'unknown')}, {cpu.get('count')} cores",
            "python": raw["machine_info"]["python_version"],
            **{name: row[name] for name in (*SHARED, "packages") if name in row},
            "rows": [],
        }
        result = results.setdefault(row["device"], facts)
        hidden = (*SHARED, "packages")
        result["rows"].append({name: row[name] for name in row if name not in hidden})
    return list(results.values())


def add(path: Path) -> None:
    """Keeps what `make bench` measured, quartiles without raw timings, one file per device."""
    RESULTS.mkdir(exist_ok=True)
    for result in keep(json.loads(path.read_text())):
        device = result["device"].replace(" ", "-").lower()
        name = f"{result['date']}-{device}-{result['commit'][:10]}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


def load() -> dict[str, Result]:
    """Returns all committed results by the names of their files, the newest first."""
    paths = sorted(RESULTS.glob("*.json"), reverse=True)
    return {path.name: _upgraded(json.loads(path.read_text())) for path in paths}


def rows_of(result: Result, table: str) -> list[Row]:
    return [row for row in result["rows"] if row["table"] == table]


def names_in(rows: list[Row], key: str, order: tuple[str, ...] = ()) -> list[str]:
    """Returns who was timed in any of the rows, in that order and then as they come."""
    found = dict.fromkeys(name for row in rows for name in row.get(key, {}))
    return [name for name in order if name in found] + [n for n in found if n not in order]


def source(result: Result) -> str:
    """Returns where figures come from, as a sentence."""
    packages = "".join(
        f", {name} {version}" for name, version in result.get("packages", {}).items()
    )
    return (
        f"{result['machine']}; {result['threads']} threads; torch {result['torch']}, Python "
        f"{result['python']}{packages}; {commit_of(result)}."
    )


def _upgraded(result: Result) -> Result:
    """Rows of November 2026 named no table, and sweeps had a key of their own."""
    for row in result["rows"]:
        if "sweeps_us" in row:
            row["turns_us"] = row.pop("sweeps_us")
            row["batch"] = {"cnn": 64, "mlp": 8}[row["model"]]
            row.setdefault("table", "sweeps")
        row.setdefault("table", "steps")
    return result
