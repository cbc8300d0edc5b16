"""Turns results into text: `python -m benchmarks.report` renders docs/benchmarks.md.

`python -m benchmarks.report --add build/bench.json` first keeps what `make bench` measured,
quartiles without the raw timings, as files of their own in benchmarks/results/, one per device.
Tables come from those files only, and the rows that lrfast loses stay in.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import finder_loops, timing
from benchmarks.implementations import NAMES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TRIADS = ("triad", "triad in place")
WAYS = {"turns_us": "turns", "runs_us": "runs"}
SHARED = ("device", "torch", "threads")  # facts of a run that every row repeats

HEAD = f"""# Benchmarks

Median time of one step in microseconds, on equal work: tensors of the same values with the same
hyperparameters, whose weights, states and averages after three steps were compared before the
timing. Machines are shared, so read ratios rather than times.

**Parameters.** `lora` is 224 pairs of (8, 512) and (512, 8), `mlp` 6 tensors with 7 thousand
elements, `vectors` 300 tensors of 64, `resnet50` 161 tensors with 25.6 million, `vit_small` 152
with 22 million, `scalars` 10,000 of one, `one_large` one of 200 million. They are in one param
group, or in one per layer, a layer being a module that owns parameters.

**Step.** AdamW and SGD with momentum are `optimizer.step()`. The whole update is, in this order:
unscale the gradients and look for infinities, clip by the global norm, AdamW, average the weights,
one-cycle schedule of rate and beta1, zero the gradients. torch does it by
`_amp_foreach_non_finite_check_and_unscale_`, `clip_grad_norm_(foreach=True)`, AdamW,
`get_ema_multi_avg_fn`, `OneCycleLR` and `_foreach_zero_`; lrfast by one `step()`. Gradients are
filled again before each step, outside its time.

**Order.** Implementations are interleaved in one process. In `turns` they take turns step by step,
so that each finds the caches full of the others' data. In `runs` they take turns in runs of
{timing.RUN} steps, the first {timing.UNCOUNTED} of which are not counted, so that caches are warm,
as in a loop that does little between steps. With `resnet50` and `vit_small`, foreach and for-loop
take part in every fourth round only.

**Ratio** is the fastest of torch's implementations over lrfast: above 1 where lrfast is faster. The
floor is what it should reach.

**Bandwidth.** For large parameters, the bytes that lrfast's step has to move (per element 28 for
AdamW, 20 for SGD, 14 for AdamW in bf16) over its time, next to that of two triads over as much
memory as the step's tensors occupy, each at 12 bytes per element, in the same rounds: STREAM's
a = b + s c, whose stores also cost a read that is not counted, and a = a + s c, which writes what
it has read, as optimizers do. The shares are of either one's bandwidth.

**Range test.** Median seconds of a whole call with {finder_loops.STEPS} steps: snapshot, sweep,
restore, and in lrfast also the smoothing and every rule's suggestion, against the bare loop: as
many steps of `zero_grad`, forward, loss, backward and `step` with torch.optim's default
implementation, between a copy of the state dicts of model and optimizer and their loading. `cnn`
has three convolutions over batches of 64 x 3 x 32 x 32, `mlp` three linear layers over batches of
8, next to which the loop's own cost shows. All find the same losses, of which the peers keep theirs
without smoothing; sweeps take turns. Quartiles are in parentheses. Each ratio is to the bare loop:
below 1 where a range test is faster.

Made by `make bench` and `python -m benchmarks.report` from the files in benchmarks/results/.
"""


def keep(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what result files, one per device, hold of pytest-benchmark's output."""
    cpu = raw["machine_info"]["cpu"]
    results: dict[str, dict[str, Any]] = {}
    for row in (benchmark["extra_info"] for benchmark in raw["benchmarks"]):
        facts = {
            "date": raw["datetime"][:10],
            "commit": raw["commit_info"]["id"],
            "dirty": raw["commit_info"]["dirty"],
            "machine": f"{cpu.get('brand_raw', 'unknown')}, {cpu.get('count')} cores",
            "python": raw["machine_info"]["python_version"],
            **{name: row[name] for name in SHARED},
            "rows": [],
        }
        result = results.setdefault(row["device"], facts)
        result["rows"].append({name: row[name] for name in row if name not in SHARED})
    return list(results.values())


def section(result: dict[str, Any]) -> str:
    """Returns one result file as Markdown."""
    dirty = ", with uncommitted changes" if result["dirty"] else ""
    names = [*NAMES, "torch / lrfast", "floor"]
    times = ["step", "parameters", "groups", "order", *names]
    rates = ["step", "parameters", "groups", "order", "lrfast", *TRIADS]
    rates += [f"of the {triad}" for triad in TRIADS] + ["floor"]
    steps = [row for row in result["rows"] if "turns_us" in row]
    with_bytes = [row for row in steps if row["bytes"]]
    sweeps = [row for row in result["rows"] if "sweeps_us" in row]
    lines = [
        f"## {result['device']}, {result['date']}",
        "",
        f"{result['machine']}; {result['threads']} threads; torch {result['torch']}, Python "
        f"{result['python']}; commit {result['commit'][:10]}{dirty}.",
    ]
    if steps:
        lines += ["", *_table(times, [_times(row, way) for row in steps for way in WAYS])]
    if with_bytes:
        lines += ["", "Bandwidth in GB/s:", ""]
        lines += _table(rates, [_bandwidths(row, way) for row in with_bytes for way in WAYS])
    if sweeps:
        lines += ["", *_sweep_table(sweeps)]
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|---|---|---:|---|" + "---:|" * (len(header) - 4)
    return [_line(header), rule, *(_line(row) for row in rows)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _title(row: dict[str, Any], way: str) -> list[str]:
    return [row["work"], row["parameters"], str(row["groups"]), WAYS[way]]


def _times(row: dict[str, Any], way: str) -> list[str]:
    medians = {name: quartiles[1] for name, quartiles in row[way].items() if name in NAMES}
    peers = [median for name, median in medians.items() if name != "lrfast"]
    cells = [f"{medians[name]:,.1f}" if name in medians else "" for name in NAMES]
    floor = "" if row["floor"] is None else f"{row['floor']:g}"
    return [*_title(row, way), *cells, f"{min(peers) / medians['lrfast']:.2f}", floor]


def _bandwidths(row: dict[str, Any], way: str) -> list[str]:
    # Bytes per microsecond, a thousandth of GB/s.
    rates = {name: row["bytes"][name] / row[way][name][1] / 1e3 for name in ("lrfast", *TRIADS)}
    shares = [f"{rates['lrfast'] / rates[triad]:.0%}" for triad in TRIADS]
    floor = "" if row["share_floor"] is None else f"{row['share_floor']:.0%}"
    return [*_title(row, way), *(f"{rate:.1f}" for rate in rates.values()), *shares, floor]


def _sweep_table(rows: list[dict[str, Any]]) -> list[str]:
    """Seconds of each way of sweeping, then its ratio to the bare loop, with the quartiles."""
    header = ["range test", "optimizer", "steps", "", *finder_loops.NAMES]
    lines = []
    for row in rows:
        bare = row["sweeps_us"][finder_loops.BARE][1]
        title = [row["model"], row["optimizer"], str(row["steps"])]
        seconds, ratios = [*title, "seconds"], [*title, "ratio"]
        for name in finder_loops.NAMES:
            low, median, high = row["sweeps_us"].get(name, (None, None, None))
            if median is None:
                seconds.append("")
                ratios.append("")
            else:
                seconds.append(f"{median / 1e6:.3f} ({low / 1e6:.3f} to {high / 1e6:.3f})")
                ratios.append(f"{median / bare:.2f}")
        lines += [seconds, ratios]
    return _table(header, lines)


def render() -> str:
    """Returns the page."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([HEAD, *(section(result) for result in results)])


def main() -> int:
    """Renders the page, after adding a run if there is one to add."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="pytest-benchmark's JSON of a run to keep")
    arguments = parser.parse_args()
    if arguments.add:
        RESULTS.mkdir(exist_ok=True)
        for result in keep(json.loads(arguments.add.read_text())):
            device = result["device"].replace(" ", "-").lower()
            name = f"{result['date']}-{device}-{result['commit'][:10]}.json"
            (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
