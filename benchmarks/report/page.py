"""The text of docs/benchmarks.md and of the README's block."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.provenance import ROOT, table
from benchmarks.report import headlines, plots, tables
from benchmarks.report.results import Result, Row, rows_of, source
from benchmarks.speed import finder_peers, timing
from benchmarks.training.trainers import CAPTURED, EAGER, FASTEST

PAGE = ROOT / "docs" / "benchmarks.md"

OPEN = """# Benchmarks

![Ratios of times, torch's fastest implementation to lrfast](images/{picture})

{table}

Time of the fastest of torch's implementations over lrfast's: above 1, lrfast is faster. Measured on
{machine}. Torch's fastest is ahead in {lost} of {count} timings of a step there. Nothing has
been timed on a GPU yet. [How it was measured](#how-it-was-measured) and
[where the figures come from](#where-the-figures-come-from) stand at the end.
"""
HEADLINES = (
    "AdamW step, 224 groups",
    "AdamW step, ResNet-50 in 107 groups",
    "AdamW step, one tensor of 100 million",
    "training step of a small transformer",
    "captured step of a CNN on a CPU, against the same uncaptured",
)

METHOD = f"""## How it was measured

Median time in microseconds, on equal work: tensors of the same values with the same
hyperparameters, whose weights, states and averages after three steps were compared before the
timing. Machines are shared, so read ratios rather than times.

**Parameters.** `lora` is 224 pairs of (8, 512) and (512, 8), `mlp` 6 tensors with 7 thousand
elements, `vectors` 300 tensors of 64, `resnet50` 161 tensors with 25.6 million, `vit_small` 152
with 22 million, `scalars` 10,000 of one, `hundred_million` and `one_large` one tensor of 100 and
200 million. They are in one param group, or in one per layer, a layer being a module that owns
parameters.

**Step.** A rule's name stands for its `optimizer.step()`; SGD has momentum. The whole update is, in
this order: unscale the gradients and look for infinities, clip by the global norm, AdamW (or the
rule that is named), average the weights, one-cycle schedule of rate and beta1, zero the gradients.
torch does it by `_amp_foreach_non_finite_check_and_unscale_`, `clip_grad_norm_(foreach=True)`, its
optimizer, `get_ema_multi_avg_fn`, `OneCycleLR` and `_foreach_zero_`; lrfast by one `step()`.
Gradients are filled again before each step, outside its time. `torch-compiled` and `torchao`
compile first, outside the time, and take part where a case has few enough shapes.

**Peers** take part where they are installed (`make peers`), run on the device, and find
the same weights as torch; who does not is listed with the reason.

**Small states.** All are AdamW from the same weights, with the same gradients; bytes per parameter
are those of weight, gradient and states that a step reads and writes. Roundings differ, so that
work counts as equal if three steps move the weights as torch's fused step in float32 does, within
25 % of the moves on average. Those that compile for every shape or take seconds for a step are
left out of what is too large for them.

**Order.** Implementations are interleaved in one process. In `turns` they take turns step by step,
so that each finds the caches full of the others' data. In `runs` they take turns in runs of
{timing.RUN} steps, the first {timing.UNCOUNTED} of which are not counted, so that caches are warm,
as in a loop that does little between steps. Over large parameters, {timing.FLUSHED >> 20} MB are
written before each step, so that nothing of use is left in the caches, and slow ones take part in
every fourth round only. (Results of before 27 November 2026 were made without clearing them.)

**Ratio** is the fastest of torch's implementations over lrfast: above 1 where lrfast is faster. The
floor is what it should reach. For rules that torch has not it is over the fastest of the package of
their authors, whose steps find the gradients filled again, outside their time.

**Bandwidth.** For large parameters, the bytes that the step has to move (per element, gradient,
weight and states read once, and all but the gradient written: 28 for AdamW in single precision, 20
for SGD; 16 more for the whole update, which reads gradients twice) over its time, next to that of
plain passes over as much memory as the step's tensors occupy, in the same rounds: a copy, at 8
bytes per element, and two triads, at 12: STREAM's a = b + s c, whose stores also cost a read that
is not counted, and a = a + s c, which writes what it has read, as optimizers do. The shares are of
each one's bandwidth. For all other steps the roof is the median of the last triad's in that run;
what fits in caches is above it.

**Counts** are those of torch's profiler over one step: operations of torch, nested ones too, blocks
allocated by torch, and how far the memory in use rose. An extension's own work is in none of them.

**Training.** A step is forward, backward, clipping by the global norm, AdamW with one param group
per layer, one-cycle schedule, average of the weights. `{FASTEST}` has the fused optimizer,
foreach clipping and averages, and never reads the loss; `{EAGER}` has the defaults and
`loss.item()`. The update's share is that of everything behind the backward pass in torch's fastest,
timed alone; the floor holds where it is more than a quarter. `resnet18` is a quarter as wide as
usual over 32 x 32; `transformer` has six layers of width 256 over sequences of 16.

**Range test.** Median seconds of a whole call with {finder_peers.STEPS} steps: snapshot, sweep,
restore, and in lrfast also the smoothing and every rule's suggestion, against the bare loop: as
many steps of `zero_grad`, forward, loss, backward and `step` with torch.optim's default
implementation, between a copy of the state dicts of model and optimizer and their loading. `cnn`
has three convolutions over images of 3 x 32 x 32, `mlp` three linear layers, next to which the
loop's own cost shows. All find the same losses, of which torch-lr-finder and ignite keep theirs
without smoothing; sweeps take turns. Quartiles are in parentheses. Each ratio is to the bare loop:
below 1 where a range test is faster.

**Schedules.** `many_groups` is 500 vectors of 64, `transformer` 500 tensors with 11 million
elements, dealt out to more and more param groups: AdamW's step alone, with a one-cycle schedule
(OneCycleLR), and with a function of the step (LambdaLR). The ratio is of the steps with a one-cycle
schedule, and so is our cost over that with one group.
"""


def opening(results: dict[str, Result]) -> str:
    """Returns what the page begins with: a chart, and a few rows of it."""
    _, result = headlines.newest(results)
    times = headlines.times(result)
    rows = [[title, *headlines.cells(*times[title])] for title in HEADLINES]
    ratios = tables.step_ratios(result)
    return OPEN.format(
        picture=plots.RATIOS,
        table="\n".join(table(["", "other, ms", "lrfast, ms", "ratio"], rows, 1)),
        machine=result["machine"],
        count=len(ratios),
        lost=sum(ratio < 1 for ratio in ratios) or "none",
    )


def section(result: Result) -> str:
    """Returns one result file's tables as Markdown."""
    lines = [f"## {_title(result)}"]
    for title, make in tables.SECTIONS.items():
        if found := make(result):
            lines += ["", f"### {title}", "", *found]
        if make is tables.scaling and found:
            picture = plots.name_of(result)
            lines += ["", f"![Cost of a step against its size](images/{picture})"]
    return "\n".join(lines) + "\n"


def _title(result: Result) -> str:
    return f"{result['device']}, {result['date']}"


def sources(results: dict[str, Result]) -> str:
    """Returns machine, versions and commit of every result file."""
    lines = [
        "## Where the figures come from",
        "",
        "`make bench` and `python -m benchmarks.report` make this page from the files in "
        "benchmarks/results/.",
        "",
        *(f"- {_title(result)}: {source(result)} {name}" for name, result in results.items()),
    ]
    return "\n".join(lines) + "\n"


# What is aimed at on a GPU, and where a result file has the figure.
Finder = Callable[[Result], float | None]


def _step(result: Result, parameters: str, groups: int) -> Row | None:
    """The row of AdamW over these parameters."""
    for row in rows_of(result, "steps"):
        if (row["work"], row["parameters"], row["groups"]) == ("AdamW", parameters, groups):
            return row
    return None


def _copy_share(result: Result) -> float | None:
    row = _step(result, "hundred_million", 1)
    if row is None:
        return None
    rates = {name: row["bytes"][name] / row["turns_us"][name][1] for name in ("lrfast", "copy")}
    return float(rates["lrfast"] / rates["copy"])


def _launches(result: Result) -> float | None:
    row = _step(result, "lora", 224)
    return row["counts"]["lrfast"].get("launches") if row else None


def _over_fused(result: Result) -> float | None:
    row = _step(result, "lora", 224)
    return _ratio(row["runs_us"], "torch-fused", "lrfast") if row else None


def _ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    return times[name][1] / times[other][1]


def _captured(result: Result) -> Row | None:
    rows = [row for row in rows_of(result, "training") if CAPTURED in row["runs_us"]]
    return min(rows, key=lambda row: row["runs_us"][CAPTURED][1], default=None)


def _captured_host(result: Result) -> float | None:
    row = _captured(result)
    return float(row["runs_host_us"][CAPTURED][1]) if row else None


def _over_usual(result: Result) -> float | None:
    row = _captured(result)
    return _ratio(row["runs_us"], EAGER, CAPTURED) if row else None


GPU_AIMS: list[tuple[str, str, Finder, str]] = [
    ("AdamW on 100M float32 parameters, share of the copy's bandwidth", "92%", _copy_share, ".0%"),
    ("launches of an AdamW step with 224 param groups", "1", _launches, "g"),
    ("torch fused / lrfast, AdamW with 224 param groups", "10", _over_fused, ".1f"),
    ("host time of a captured training step, µs", "10", _captured_host, ".1f"),
    ("torch as usual / lrfast captured, training in small batches", "1.5", _over_usual, ".2f"),
]


def gpu_aims(results: dict[str, Result]) -> str:
    """Returns what is aimed at on a GPU beside what was measured there last."""
    gpu = next((result for result in results.values() if result["device"] != "cpu"), None)
    lines = []
    for title, aim, find, form in GPU_AIMS:
        value = find(gpu) if gpu else None
        lines.append([title, aim, "not measured yet" if value is None else format(value, form)])
    text = "The same cases run with `-m gpu`, timed by CUDA events, launches as profiled.\n"
    body = "\n".join(table(["aim", "at least (host time: at most)", "measured"], lines, 1))
    return f"## What is aimed at on a GPU\n\n{text}\n{body}\n"


def render(results: dict[str, Result]) -> str:
    """Returns the page."""
    sections = [section(result) for result in results.values()]
    return "\n".join([opening(results), *sections, gpu_aims(results), METHOD, sources(results)])
