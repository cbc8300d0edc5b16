"""Floors under the time of a step, and lrfast above them: `python -m benchmarks.report.limits`.

Writes docs/performance.md. Bytes come from the engine's own table of rules, times from the
committed result files, and what no machine of ours has run is computed and says so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import provenance
from benchmarks.provenance import ROOT
from benchmarks.report import predicted, results
from benchmarks.report.results import rows_of
from benchmarks.speed import model_sets
from lrfast import _C, optim
from lrfast.tools.bench._contenders import bytes_moved

PAGE = ROOT / "docs" / "performance.md"

# Bytes of a parameter and of a state.
DTYPES = {
    "float32": (4, 4),
    "bf16": (2, 2),
    "bf16, float32 states": (2, 4),
    "float32, bf16 states": (4, 2),
}
NAMES = {
    rule: ", ".join(n for n in optim.__all__ if getattr(getattr(optim, n), "_rule", "") == rule)
    for rule in _C.rules
}
ROOF = "triad in place"
FLOOR_HEADER = ["step", "parameters", "groups", "order", "MB", "floor", "lrfast"]
FLOOR_HEADER += ["of the floor", "best of torch"]
SMALL = 10_000  # elements per tensor
CUDA_CHUNK = 32768  # csrc/bindings/device.h

# torch's fused optimizers, of CUDA 13: a launch takes at most so many tensors and chunks
# (ATen/native/cuda/MultiTensorApply.cuh), and each group has one for its step counts besides.
TORCH_TENSORS, TORCH_CHUNKS, TORCH_CHUNK = 252, 2240, 65536
GPUS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes per second, by the data sheet
RANKS = {"8B": (1, 8, 64), "70B": (8, 64, 512)}
ADAMW_STATES = 2


@dataclass(frozen=True)
class Llama:
    """Shapes of a Llama 3 model (Grattafiori et al., arXiv:2407.21783, table 3)."""

    layers: int
    width: int
    hidden: int
    key_width: int = 1024
    vocabulary: int = 128256

    def tensors(self) -> Iterator[int]:
        """Elements of each tensor."""
        yield from (self.vocabulary * self.width, self.vocabulary * self.width, self.width)
        for _ in range(self.layers):
            yield from (self.width**2, self.width**2)  # queries, outputs
            yield from (self.width * self.key_width, self.width * self.key_width)
            yield from (self.width * self.hidden,) * 3
            yield from (self.width, self.width)  # norms


MODELS = {"8B": Llama(32, 4096, 14336), "70B": Llama(80, 8192, 28672)}

OPEN = """# How fast a step can be

How near a step comes to the time that memory alone takes, which is the floor: at 100 % it is as
fast as memory allows.

{table}

A step of an optimizer computes little and moves much: each parameter, gradient and state comes from
memory once, and most go back. The floor is that many bytes at the bandwidth that plain passes reach
on the same machine, and what is above it is overhead. Times are medians in microseconds on
{machine}. [How the floor is measured](#how-the-floor-is-measured) and
[where the figures come from](#where-the-figures-come-from) stand at the end.
"""
FIRST = [
    ("AdamW", "resnet50", "107"),
    ("AdamW", "hundred_million", "1"),
    ("whole update", "resnet50", "107"),
    ("SGD", "vit_small", "75"),
    ("AdamW, bf16", "vit_small", "1"),
]

OPTIONS = """## Bytes per parameter

Read and written in one step: `3 param + 2 states`. The gradient is of the parameter's type.
The first pass of Prodigy and DAdaptAdam reads both once more; it only reads `p0`, and
DAdaptAdam's reads `exp_avg_sq` a second time.
"""

AFTER_RULES = """What a step does besides, in the same pass or in the one before it, and what that costs in passes
of their own. The norm is what `max_grad_norm`, `skip_nonfinite` and `telemetry` need; a schedule,
cycled momentum, freezing and stochastic rounding move nothing.
"""  # noqa: E501

AFTER_OPTIONS = """The whole update of the benchmarks (unscale, look for infinities, clip, AdamW, average, zero) moves
{fused} bytes per float32 parameter in lrfast and {apart} in passes of their own. So the bytes alone
make a factor of {ratio:.2f}; where lrfast wins by more, it is because those passes do not reach the
memory's bandwidth.
"""  # noqa: E501

MEASURED = """## Every step against the floor

The last column is the fastest of torch's implementations against the same floor.
"""

METHOD = """## How the floor is measured

The floor is the step's bytes at the bandwidth of `a = a + s c`, in place, over as much memory,
timed in the same rounds; it writes what it has read, as optimizers do. Some steps beat it, as they
walk through memory in another way. `turns` and `runs` are those of [the benchmarks](benchmarks.md).
"""

SOURCE = """## Where the figures come from

`python -m benchmarks.report.limits` writes this page: bytes from the engine's table of rules, times
from the files in benchmarks/results/.
"""

OVERHEAD = """Small parameters, in `runs`: these are overhead, not bandwidth.
"""

LEFT = """## What is left, and why

- **Large float32 parameters**: {float32} of the floor. Prefetching within them was tried and made
  steps slower by up to 35 %. Why SGD comes out lowest in `runs` has not been found out.
- **bfloat16 on the CPU**: {bf16} of the floor. Elements go through float32 in blocks of 64, and the
  conversions take longer than memory where that is fast.
- **Many small tensors**: that a gradient and its states are still where they were has to be seen
  before an address in the table can be trusted, which takes several cache lines per tensor. In
  `turns` those lines come from memory.
- **Python 3.14**: its dicts do not tell whether they changed, so groups and states are looked up at
  every step. What that costs has not been measured.
- **GPUs**: no figure on this page comes from one. The aims are 92 % of the device's own copy
  bandwidth at 100 million float32 parameters and more, one launch per update, and less than 10 µs
  of the host's time per captured step; `make gpu-check` measures them.
"""

# Millions of parameters, types of parameter and states, whether gradients are clipped.
PREDICTED = [
    (1, "float32", "float32", False),
    (25.6, "float32", "float32", False),
    (100, "float32", "float32", False),
    (100, "float32", "float32", True),
    (100, "bfloat16", "bfloat16", False),
    (100, "stochastic bfloat16", "stochastic bfloat16", False),
    (100, "bfloat16", "float32", True),
]
PREDICTED_ON = ("H100", "H200", "B200")
PREDICTED_TEXT = """## Predicted on GPUs

**Computed, not measured**, to be judged by the first run on each: AdamW, all parameters in one
tensor. A kernel takes as long as the slowest of three limits: its bytes at {share} of the data
sheet's bandwidth; its instructions at four a cycle of each multiprocessor at the highest clock; its
loads, of which a thread has so many under way at once and waits {latency:.0f} ns for them. Blocks
take whole chunks, so that their number is rounded up, and each launch costs {launch:.0f} µs more.
The share, the wait and the launch are assumed; instructions and loads are counted in the machine
code (`make cuda-check`). The floor is the bytes at the whole bandwidth.
"""
LOOPS = """What was counted, in the loop over elements of AdamW's kernel:
"""

SHARDED = """## Sharded over many GPUs

**Computed, not measured.** Llama 3's shapes, each tensor cut evenly over the ranks, AdamW with
two param groups: norms have no weight decay. A rank updates its own part, so no byte of a step
depends on another rank, but for clipping: it adds a pass over the rank's gradients, two launches
(their squares, and the norms once all ranks' are added) and the one collective of an update, an
all-reduce of a float64 per param group, whatever the size of the model. The floors are the
clipped step's bytes at the data sheets' bandwidths ({gpus}), which no kernel reaches. torch's
launches are what its fused AdamW needs at least for the same part without clipping, by the size
of its tables ({tensors} tensors or {chunks:,} chunks of {chunk:,} elements), and with one launch
per group for the counts. The last column is what lrfast's list of chunks takes of the GPU's
memory.
"""


def table(header: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """Returns a table as text that ends with its last line."""
    return "\n".join(provenance.table(header, rows, texts)) + "\n"


def _first_pass(states: list[str], param: int, state: int) -> int:
    """Returns what a rule's pass before its update reads besides what the table counts."""
    if "s" not in states:
        return 0
    return 2 * param - state if "p0" in states else 2 * param + state


def rules_table() -> str:
    """Returns the bytes of every rule, form and pair of types."""
    rows = []
    for rule, forms in _C.rule_states.items():
        for states in forms:
            # A pass of its own reads gradients, parameters and a state once more; p0 is only read.
            more = [_first_pass(states, p, s) for p, s in DTYPES.values()]
            if rule == "muon" and states == ["momentum_buffer"]:
                more = [bytes_moved(p, 0) for p, _ in DTYPES.values()]  # the products aside
            moved = [bytes_moved(p, len(states) * s) for p, s in DTYPES.values()]
            cells = [str(sum(each)) for each in zip(moved, more, strict=True)]
            rows.append([NAMES[rule], ", ".join(f"`{s}`" for s in states) or "none", *cells])
    return table(["rule", "states", *DTYPES], rows, texts=2)


def apart(param: int, average: int) -> dict[str, int]:
    """Returns what each option costs as a pass of its own.

    Clipping reads all gradients, then scales them; looking for infinities unscales them in place;
    an average reads itself and the parameter.
    """
    return {
        "norm": 3 * param,
        "unscale": 2 * param,
        "average": 2 * average + param,
        "zero": param,
    }


def fused(param: int, average: int) -> dict[str, int]:
    """Returns what each option adds to lrfast's step."""
    bare = bytes_moved(param, 0)
    return {
        "norm": bytes_moved(param, 0, takes_norm=True) - bare,
        "unscale": 0,
        "average": bytes_moved(param, 0, average) - bare,
        "zero": bytes_moved(param, 0, zeroes=True) - bare,
    }


def options_table() -> str:
    """Returns the options' bytes, in the same pass and apart."""
    titles = {
        "norm": "norm, clipping",
        "unscale": "unscaling, found_inf",
        "average": "`ema_decay` (averages in float32)",
        "zero": "`zero_grads`",
    }
    kinds = [(4, 4), (2, 4)]
    rows = []
    for option, title in titles.items():
        cells = [str(make(*kind)[option]) for kind in kinds for make in (fused, apart)]
        rows.append([title, *cells])
    header = ["option", "float32: lrfast", "apart", "bf16: lrfast", "apart"]
    return table(header, rows)


def whole_update() -> tuple[int, int]:
    """Returns the bytes of AdamW with all options, in float32: lrfast's and in passes apart."""
    step = bytes_moved(4, ADAMW_STATES * 4)
    return step + sum(fused(4, 4).values()), step + sum(apart(4, 4).values())


# ---- measured --------------------------------------------------------------------------------


def _ways(row: dict[str, Any]) -> list[str]:
    return [way for way in ("turns_us", "runs_us") if "lrfast" in row.get(way, {})]


def _best_of_torch(times: dict[str, list[float]]) -> float | None:
    found = [t[1] for name, t in times.items() if name.startswith("torch")]
    return min(found, default=None)


def floor_rows(result: dict[str, Any]) -> list[list[str]]:
    """Returns the large sets of a result: floor, time, and how much of the floor is reached."""
    rows = []
    for row in rows_of(result, "steps"):
        if ROOF not in row["bytes"]:
            continue
        for way in _ways(row):
            times, moved = row[way], row["bytes"]
            floor = moved["lrfast"] / (moved[ROOF] / times[ROOF][1])
            best = _best_of_torch(times)
            cells = [f"{moved['lrfast'] / 1e6:,.0f}", f"{floor:,.0f}", f"{times['lrfast'][1]:,.0f}"]
            cells.append(f"{floor / times['lrfast'][1]:.0%}")
            cells.append("" if best is None else f"{floor / best:.0%}")
            rows.append([*_title(row), way.removesuffix("_us"), *cells])
    return rows


def _title(row: dict[str, Any]) -> list[str]:
    return [str(row["work"]), str(row["parameters"]), str(row["groups"])]


def overhead_rows(result: dict[str, Any]) -> list[list[str]]:
    """Returns the small sets of a result: time per tensor."""
    rows = []
    for row in rows_of(result, "steps"):
        if "runs_us" not in _ways(row):
            continue
        layers = getattr(model_sets, row["parameters"])()
        tensors = [math.prod(shape) for layer in layers for shape in layer]
        if sum(tensors) > SMALL * len(tensors):
            continue
        time, best = row["runs_us"]["lrfast"][1], _best_of_torch(row["runs_us"])
        each = f"{1e3 * time / len(tensors):,.0f}"
        theirs = "" if best is None else f"{1e3 * best / len(tensors):,.0f}"
        size = f"{sum(tensors) / len(tensors):,.0f}"
        rows.append([*_title(row), f"{len(tensors):,}", size, f"{time:,.1f}", each, theirs])
    return rows


def opening() -> str:
    """Returns what the page begins with: a few rows of the newest result file."""
    result = next(result for result in results.load().values() if floor_rows(result))
    found = {tuple(row[:3]): row for row in reversed(floor_rows(result))}
    # Neither the order nor the bytes, which need the text below.
    rows = [[*found[title][:3], *found[title][5:]] for title in FIRST]
    header = [*FLOOR_HEADER[:3], *FLOOR_HEADER[5:]]
    return OPEN.format(table=table(header, rows, texts=3).rstrip(), machine=result["machine"])


def sources() -> str:
    """Returns machine, versions and commit of every result file with steps."""
    lines = [
        f"- {result['device']}, {result['date']}: {result['machine']}; {result['threads']} "
        f"threads; torch {result['torch']}; {provenance.commit_of(result)}; "
        f"[{name}](../benchmarks/results/{name})."
        for name, result in results.load().items()
        if floor_rows(result) or overhead_rows(result)
    ]
    return "\n".join([SOURCE, *lines]) + "\n"


def measured() -> str:
    """Returns the tables of all result files that hold steps, each under its date."""
    parts = []
    for result in results.load().values():
        floors, overheads = floor_rows(result), overhead_rows(result)
        if not floors and not overheads:
            continue
        parts.append(f"### {result['device']}, {result['date']}\n")
        if floors:
            parts.append(table(FLOOR_HEADER, floors, texts=4))
        if overheads:
            header = ["step", "parameters", "groups", "tensors", "elements each", "lrfast, µs"]
            header += ["ns per tensor", "best of torch"]
            parts += [OVERHEAD, table(header, overheads, texts=2)]
    return "\n".join(parts)


def left() -> str:
    """Returns what keeps steps from the floor, with the shares that all results span."""
    shares: dict[bool, list[float]] = {False: [], True: []}
    for result in results.load().values():
        for row in floor_rows(result):
            shares["bf16" in row[0]].append(float(row[7].rstrip("%")))
    spans = {
        name: f"{min(found):.0f} to {max(found):.0f} %" if found else "not measured as a share"
        for name, found in (("float32", shares[False]), ("bf16", shares[True]))
    }
    return LEFT.format(**spans)


# ---- computed --------------------------------------------------------------------------------


def predicted_rows() -> list[list[str]]:
    """Returns AdamW's predicted times, one row per size, pair of types and GPU."""
    rows = []
    for millions, param, state, clipped in PREDICTED:
        for name, gpu in predicted.gpus().items():
            if name not in PREDICTED_ON:
                continue
            elements = round(millions * 1e6)
            step = predicted.find_loop(
                gpu.arch, "step_kernel<Adam, false>", param, state, ADAMW_STATES
            )
            kernels = [step]
            if clipped:
                half = param.removeprefix("stochastic ")
                kernels.append(predicted.find_loop(gpu.arch, "norm_kernel", half, half, 0))
            parts = [predicted.predict(gpu, kernel, elements) for kernel in kernels]
            floor = sum(kernel.moved for kernel in kernels) * elements / gpu.bandwidth
            total = sum(part.seconds for part in parts)
            types = param if param == state else f"{param}, {state} states"
            cells = [f"{millions:g}", types, "yes" if clipped else "no", name]
            bounds = dict.fromkeys(part.bound for part in parts)
            rows.append([*cells, f"{1e6 * floor:,.1f}", f"{1e6 * total:,.1f}", ", ".join(bounds)])
    return rows


def predicted_times() -> str:
    """Returns what a step is predicted to take on GPUs, and of which instructions."""
    text = PREDICTED_TEXT.format(
        share=predicted.SHARE, latency=1e9 * predicted.LATENCY, launch=1e6 * predicted.LAUNCH
    )
    header = ["M parameters", "types", "clipped", "GPU", "floor, µs", "predicted, µs", "bound by"]
    loops = []
    for param, state in dict.fromkeys((row[1], row[2]) for row in PREDICTED):
        for name, gpu in predicted.gpus().items():
            if name in PREDICTED_ON:
                loop = predicted.find_loop(
                    gpu.arch, "step_kernel<Adam, false>", param, state, ADAMW_STATES
                )
                in_flight = loop.in_flight * predicted.BLOCK * predicted.PER_PROCESSOR / 1024
                types = param if param == state else f"{param}, {state} states"
                loops.append([types, name, f"{loop.instructions:.1f}", f"{in_flight:.0f}"])
    heads = ["types", "GPU", "instructions per element", "KiB in flight per multiprocessor"]
    times, counts = table(header, predicted_rows(), texts=4), table(heads, loops, texts=2)
    return f"{text}\n{times}\n{LOOPS}\n{counts}"


def torch_launches(shards: list[int]) -> int:
    """Returns how many launches torch's fused AdamW takes at least for one group's tensors."""
    chunks = sum(math.ceil(numel / TORCH_CHUNK) for numel in shards)
    return 1 + max(math.ceil(len(shards) / TORCH_TENSORS), math.ceil(chunks / TORCH_CHUNKS))


def sharded_rows(model: str, ranks: int) -> list[list[str]]:
    """Returns a model's rows on so many ranks, one per pair of types."""
    whole = list(MODELS[model].tensors())
    shards = [math.ceil(numel / ranks) for numel in whole]
    norms = [shard for shard, numel in zip(shards, whole, strict=True) if numel < 100_000]
    others = [shard for shard, numel in zip(shards, whole, strict=True) if numel >= 100_000]
    launches = torch_launches(norms) + torch_launches(others)
    chunks = sum(math.ceil(shard / CUDA_CHUNK) for shard in shards)
    rows = []
    for dtype in ("float32", "bf16, float32 states", "bf16"):
        param, state = DTYPES[dtype]
        each = [bytes_moved(param, ADAMW_STATES * state, takes_norm=n) for n in (False, True)]
        step, clipped = (sum(shards) * count for count in each)
        floors = [f"{1e3 * clipped / bandwidth:,.2f}" for bandwidth in GPUS.values()]
        cells = [f"{len(shards)}", f"{sum(shards) / 1e6:,.0f}", f"{step / 1e9:,.2f}"]
        cells += [f"{clipped / 1e9:,.2f}", *floors, "1 + 2", str(launches)]
        rows.append([model, str(ranks), dtype, *cells, f"{8 * chunks / 1e3:,.0f}"])
    return rows


def sharded() -> str:
    """Returns what is computed for 8B and 70B parameters."""
    gpus = ", ".join(f"{name} {bandwidth / 1e12:g} TB/s" for name, bandwidth in GPUS.items())
    text = SHARDED.format(gpus=gpus, tensors=TORCH_TENSORS, chunks=TORCH_CHUNKS, chunk=TORCH_CHUNK)
    header = ["model", "ranks", "types", "tensors", "M elements", "GB, step", "GB, clipped"]
    header += [f"floor {name}, ms" for name in GPUS]
    header += ["launches + norm's", "torch's launches", "chunks, kB"]
    rows = [row for model, ranks in RANKS.items() for n in ranks for row in sharded_rows(model, n)]
    return f"{text}\n{table(header, rows, texts=3)}"


def render() -> str:
    """Returns the page."""
    ours, theirs = whole_update()
    parts = [opening(), MEASURED, measured(), left(), OPTIONS, rules_table(), AFTER_RULES]
    parts += [options_table(), AFTER_OPTIONS.format(fused=ours, apart=theirs, ratio=theirs / ours)]
    parts += [predicted_times(), sharded(), METHOD, sources()]
    return "\n".join(parts)


def main() -> int:
    """Writes the page."""
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
