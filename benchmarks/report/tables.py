"""Tables of one result file, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.provenance import table
from benchmarks.report.results import Result, Row, names_in, rows_of
from benchmarks.speed import timing
from benchmarks.speed.finder_loops import BARE
from benchmarks.speed.finder_loops import NAMES as SWEEPERS
from benchmarks.speed.implementations import NAMES
from benchmarks.speed.small_states import NAMES as SMALL
from benchmarks.training.trainers import CAPTURED, EAGER, FASTEST, OURS

WAYS = {"turns_us": "turns", "runs_us": "runs"}
Lines = list[str]


def fastest_torch(medians: dict[str, float]) -> float:
    return min(median for name, median in medians.items() if name.startswith("torch-"))


def medians_of(row: Row, way: str) -> dict[str, float]:
    return {name: quartiles[1] for name, quartiles in row[way].items()}


def _timed(rows: list[Row]) -> list[tuple[Row, str]]:
    return [(row, way) for row in rows for way in WAYS if way in row]


def _title(row: Row, way: str) -> list[str]:
    return [row["work"], row["parameters"], str(row["groups"]), WAYS[way]]


def _number(value: float | None, form: str = ",.1f") -> str:
    return "" if value is None else format(value, form)


STEP_TITLE = ["step", "parameters", "groups", "order"]


def steps(result: Result) -> Lines:
    rows = rows_of(result, "steps")
    names = names_in(rows, "turns_us", NAMES)
    names = [name for name in names if name not in timing.ROOFS]
    lines = []
    for row, way in _timed(rows):
        medians = medians_of(row, way)
        cells = [_number(medians.get(name)) for name in names]
        ratio = [_number(_ratio(medians), ".2f"), _number(row["floor"], "g")]
        lines.append([*_title(row, way), *ratio, *cells])
    return table([*STEP_TITLE, "torch / lrfast", "floor", *names], lines, 4) if rows else []


def packages(result: Result) -> Lines:
    """Rules that torch has not, against the packages of their authors."""
    rows = rows_of(result, "packages")
    names = [name for name in names_in(rows, "turns_us", NAMES) if name not in timing.ROOFS]
    lines = []
    for row, way in _timed(rows):
        medians = medians_of(row, way)
        others = [median for name, median in medians.items() if name in names[1:]]
        ratio = _number(min(others) / medians["lrfast"] if others else None, ".2f")
        share = None
        if "triad in place" in medians:
            moved = row["bytes"]
            share = moved["lrfast"] / medians["lrfast"]
            share /= moved["triad in place"] / medians["triad in place"]
        cells = [_number(medians.get(name)) for name in names]
        floors = [_number(row["floor"], "g"), _number(share, ".0%")]
        lines.append([*_title(row, way), ratio, *floors, *cells])
    header = [*STEP_TITLE, "package / lrfast", "floor", "of the triad in place", *names]
    return table(header, lines, 4) if rows else []


def times(ratio: float) -> str:
    """Returns a ratio that may be close to 0."""
    return f"{ratio:.2f}" if ratio > 0.1 else f"{ratio:.1g}"


def small_states(result: Result) -> Lines:
    """AdamW with small states: one line for each that took part."""
    rows = rows_of(result, "small states")
    lines = []
    for row in rows:
        medians, moved = medians_of(row, "turns_us"), row["bytes"]
        rates = {name: moved[name] / median for name, median in medians.items()}
        for name in (name for name in SMALL if name in medians):
            ratio = medians[SMALL[0]] / medians[name]
            floor = row["floor"] if name == "lrfast, 8bit" else None
            lines.append(
                [row["parameters"], name, f"{medians[name] / 1e3:,.2f}", times(ratio),
                 _number(floor, "g"), f"{moved[name] / row['elements']:.1f}",
                 f"{rates[name] / rates['triad in place']:.0%}"]
            )  # fmt: skip
    header = ["parameters", "AdamW", "ms", f"{SMALL[0]} / it", "floor", "bytes per parameter"]
    return table([*header, "of the triad in place"], lines, 2) if rows else []


def step_ratios(result: Result) -> list[float]:
    """Ratios of every timing of a step in which one of torch's implementations took part."""
    found = (_ratio(medians_of(row, way)) for row, way in _timed(rows_of(result, "steps")))
    return [ratio for ratio in found if ratio is not None]


def _ratio(medians: dict[str, float]) -> float | None:
    takes_part = any(name.startswith("torch-") for name in medians)
    return fastest_torch(medians) / medians["lrfast"] if takes_part else None


def host_times(result: Result) -> Lines:
    """How long calls take to return, where that is not when the work is done."""
    rows = [row for row in result["rows"] if "turns_host_us" in row or "runs_host_us" in row]
    lines = []
    for row in rows:
        title = ", ".join(str(row[key]) for key in _KEYS[row["table"]])
        for way in ("turns", "runs"):
            for name, quartiles in row.get(f"{way}_host_us", {}).items():
                lines.append([row["table"], title, way, name, _number(quartiles[1])])
    return table(["benchmark", "case", "order", "", "host"], lines, 4) if rows else []


# What tells the rows of a table from one another.
_KEYS = {
    "steps": ("work", "parameters", "groups"),
    "packages": ("work", "parameters", "groups"),
    "small states": ("work", "parameters"),
    "sweeps": ("model", "optimizer"),
    "schedulers": ("parameters", "groups"),
    "curve": ("analysis",),
    "training": ("model", "batch"),
    "scaling": ("axis", "count"),
}


def bandwidths(result: Result) -> Lines:
    rows = [row for row in rows_of(result, "steps") if "triad" in row["bytes"]]
    roofs = [name for name in timing.ROOFS if any(name in row["bytes"] for row in rows)]
    header = [*STEP_TITLE, "lrfast", *roofs, *(f"of the {roof}" for roof in roofs), "floor"]
    lines = []
    for row, way in _timed(rows):
        # Bytes per microsecond, a thousandth of GB/s.
        rates = {
            name: row["bytes"][name] / median / 1e3
            for name, median in medians_of(row, way).items()
            if name in row["bytes"]
        }
        shares = [
            _number(rates["lrfast"] / rates[roof] if roof in rates else None, ".0%")
            for roof in roofs
        ]
        found = [_number(rates.get(name)) for name in ("lrfast", *roofs)]
        lines.append([*_title(row, way), *found, *shares, _number(row["share_floor"], ".0%")])
    return table(header, lines, 4) if rows else []


def roof(result: Result) -> float | None:
    """Bytes per microsecond of the triad in place over large memory, the median of the run."""
    rates = sorted(
        row["bytes"]["triad in place"] / row["turns_us"]["triad in place"][1]
        for row in rows_of(result, "steps")
        if "triad in place" in row["bytes"]
    )
    return rates[len(rates) // 2] if rates else None


def counted(result: Result) -> Lines:
    """What each step moves and sets in motion."""
    rows = [row for row in rows_of(result, "steps") if row.get("counts")]
    names = names_in(rows, "counts", NAMES)
    limit = roof(result)
    header = [*STEP_TITLE[:3], "MB moved", "GB/s", "of the roof", *names]
    lines = []
    for row in rows:
        way = "runs_us" if "runs_us" in row else "turns_us"
        rate = row["bytes"]["lrfast"] / row[way]["lrfast"][1]
        cells = [_counts(row["counts"].get(name)) for name in names]
        moved = [f"{row['bytes']['lrfast'] / 1e6:,.2f}", f"{rate / 1e3:,.1f}"]
        share = _number(rate / limit if limit else None, ".0%")
        lines.append([*_title(row, way)[:3], *moved, share, *cells])
    return table(header, lines, 2) if rows else []


def _counts(found: dict[str, int] | None) -> str:
    if found is None:
        return ""
    counts = [found[name] for name in ("launches", "ops", "allocations") if name in found]
    return " · ".join([*(f"{count:,}" for count in counts), f"{found['peak_bytes'] / 1e3:,.1f}"])


def sweeps(result: Result) -> Lines:
    """Seconds of each way of sweeping, then its ratio to the bare loop, with the quartiles."""
    rows = rows_of(result, "sweeps")
    names = names_in(rows, "turns_us", SWEEPERS)
    lines = []
    for row in rows:
        bare = row["turns_us"][BARE][1]
        title = [row["model"], str(row["batch"]), row["optimizer"], str(row["steps"])]
        seconds, ratios = [*title, "seconds"], [*title, "ratio"]
        for name in names:
            low, median, high = row["turns_us"].get(name, (None, None, None))
            if median is None:
                seconds.append("")
                ratios.append("")
            else:
                seconds.append(f"{median / 1e6:.3f} ({low / 1e6:.3f} to {high / 1e6:.3f})")
                ratios.append(f"{median / bare:.2f}")
        lines += [seconds, ratios]
    return (
        table(["range test", "batch", "optimizer", "steps", "", *names], lines, 1) if rows else []
    )


def schedulers(result: Result) -> Lines:
    rows = rows_of(result, "schedulers")
    names = names_in(rows, "turns_us")
    one = {row["parameters"]: row for row in rows if row["groups"] == 1}
    header = [
        "parameters",
        "groups",
        "order",
        *names,
        "torch / lrfast",
        "over one group",
        "ceiling",
    ]
    lines = []
    for row, way in _timed(rows):
        medians = medians_of(row, way)
        ours = medians["lrfast, one-cycle"]
        single = one.get(row["parameters"])
        growth = ours / single[way]["lrfast, one-cycle"][1] if single else None
        end = [f"{medians['torch-fused, one-cycle'] / ours:.2f}", _number(growth, ".2f")]
        cells = [_number(medians.get(name)) for name in names]
        title = [row["parameters"], str(row["groups"]), WAYS[way]]
        lines.append([*title, *cells, *end, _number(row["ceiling"], "g")])
    return table(header, lines, 1) if rows else []


def curves(result: Result) -> Lines:
    rows = rows_of(result, "curve")
    names = names_in(rows, "turns_us")
    lines = []
    for row in rows:
        medians = medians_of(row, "turns_us")
        peers = [median for name, median in medians.items() if name != "lrfast"]
        ratio = min(peers) / medians["lrfast"] if peers else None
        cells = [_number(medians[name] / 1e3 if name in medians else None) for name in names]
        lines.append([row["analysis"], f"{row['losses']:,}", *cells, _number(ratio, ".2f")])
    return table(["analysis", "losses", *names, "fastest peer / lrfast"], lines, 1) if rows else []


def training_header(rows: list[Row]) -> list[str]:
    ways = [name for name in (OURS, CAPTURED, FASTEST, EAGER) if name in names_in(rows, "runs_us")]
    return [
        "training",
        "batch",
        *ways,
        "update's share",
        "fastest / lrfast",
        "usual / lrfast",
        "floor",
    ]


def training_lines(rows: list[Row]) -> list[list[str]]:
    """Milliseconds per step with quartiles; the floor holds where the update is a good part."""
    lines = []
    for row in rows:
        found: dict[str, Any] = row["runs_us"]
        ways = [
            name for name in (OURS, CAPTURED, FASTEST, EAGER) if name in names_in(rows, "runs_us")
        ]
        share = found[f"{FASTEST}, update"][1] / found[FASTEST][1]
        ours = found[OURS][1]
        floor = row["floor"] if share > row["share"] else None
        lines.append(
            [
                row["model"],
                str(row["batch"]),
                *(_milliseconds(found.get(name)) for name in ways),
                f"{share:.0%}",
                f"{found[FASTEST][1] / ours:.2f}",
                f"{found[EAGER][1] / ours:.2f}",
                _number(floor, "g"),
            ]
        )
    return lines


def _milliseconds(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return ""
    low, median, high = (value / 1e3 for value in quartiles)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def training(result: Result) -> Lines:
    rows = rows_of(result, "training")
    return table(training_header(rows), training_lines(rows), 1) if rows else []


def scaling(result: Result) -> Lines:
    rows = rows_of(result, "scaling")
    names = names_in(rows, "turns_us") or []
    names = list(dict.fromkeys([*names_in(rows, "runs_us"), *names]))
    lines = []
    for row in rows:
        medians = medians_of(row, "runs_us" if "runs_us" in row else "turns_us")
        cells = [_number(medians.get(name)) for name in names]
        ratio = f"{fastest_torch(medians) / medians['lrfast']:.2f}"
        lines.append([row["axis"], f"{row['count']:,}", *cells, ratio])
    return table(["axis", "count", *names, "torch / lrfast"], lines, 1) if rows else []


def refusals(result: Result) -> Lines:
    """Who did not take part where, with the reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        title = row.get("work") or f"{row.get('model')} {row.get('optimizer')}"
        for name, reason in row.get("refused", {}).items():
            told = cases.setdefault((name, reason), [])
            if title not in told:
                told.append(title)
    return [f"- {name}: {', '.join(told)}: {reason}" for (name, reason), told in cases.items()]


SECTIONS: dict[str, Callable[[Result], Lines]] = {
    "Steps, in microseconds": steps,
    "Steps of rules that torch has not, in microseconds": packages,
    "Steps of AdamW with small states": small_states,
    "Bandwidth, in GB/s": bandwidths,
    "What a step moves, and its launches on a GPU · operations of torch · allocations · kB at the "
    "peak": counted,
    "Training, in milliseconds per step": training,
    "Range tests": sweeps,
    "Schedules, in microseconds per step": schedulers,
    "Analysis of a curve, in milliseconds": curves,
    "Scaling, in microseconds per AdamW step": scaling,
    "Host time of GPU work, in microseconds": host_times,
    "Did not take part, and why": refusals,
}
