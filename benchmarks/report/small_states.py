"""Blocks of docs/states_in_8_bits.md: bytes in memory and times of a step, as measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import memory, provenance
from benchmarks.report import tables
from benchmarks.report.results import Result, rows_of, source
from benchmarks.speed.small_states import NAMES, REFERENCE

PAGE = provenance.ROOT / "docs" / "states_in_8_bits.md"


def blocks(results: Mapping[str, Result]) -> dict[str, str]:
    """Returns each block's text by its name between the markers."""
    measured = provenance.newest(memory.RESULTS)
    found = {"memory": memory_table(measured), "masters memory": masters_table(measured)}
    timed = next((each for each in results.values() if rows_of(each, "small states")), None)
    return found if timed is None else found | {"speed": speed_table(timed)}


def memory_table(result: dict[str, Any]) -> str:
    """Returns the bytes of state for each parameter, by model and the parameters' dtype."""
    found = result["bytes_per_parameter"]
    columns = [(model, width) for model in found for width in found[model]]
    names = [name for name in memory.OPTIMIZERS if name != memory.PLAIN]
    rows = [[name, *(f"{found[m][width][name]:.2f}" for m, width in columns)] for name in names]
    header = ["optimizer, states", *(f"{model}, {width}" for model, width in columns)]
    return "\n".join([*provenance.table(header, rows, 1), "", provenance.sentence(result)])


def masters_table(result: dict[str, Any]) -> str:
    """Returns the bytes of weights and states together, by how both are kept."""
    found = result["with_parameters"]
    kept = [("float32", name) for name in ("AdamW, float32", "AdamW, 8bit")]
    kept += [("bfloat16", name) for name in (*memory.MASTERS, "AdamW, 8bit")]
    rows = [[width, name, *(f"{found[m][width][name]:.2f}" for m in found)] for width, name in kept]
    header = ["parameters", "optimizer, states", *found]
    return "\n".join([*provenance.table(header, rows, 2), "", provenance.sentence(result)])


def speed_table(result: Result) -> str:
    """Returns milliseconds of a step of AdamW, and torch's time over each."""
    rows = rows_of(result, "small states")
    lines = []
    for name in NAMES:
        cells = []
        for row in rows:
            found = row["turns_us"].get(name)
            ratio = row["turns_us"][REFERENCE][1] / found[1] if found else 0.0
            cells.append(f"{found[1] / 1e3:,.1f} ({tables.times(ratio)})" if found else "")
        if any(cells):
            moved = next(
                row["bytes"][name] / row["elements"] for row in rows if name in row["bytes"]
            )
            lines.append([name, f"{moved:.0f}", *cells])
    refused = {name: why for row in rows for name, why in row["refused"].items()}
    text = [f"- {name} did not take part: {why}" for name, why in refused.items()]
    models = [f"{row['parameters']}, {row['elements'] / 1e6:,.0f} M" for row in rows]
    header = ["AdamW", "bytes per parameter", *models]
    return "\n".join([*provenance.table(header, lines, 1), "", *text, "", source(result)])
