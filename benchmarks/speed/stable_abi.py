"""Cost per step of one binary for all torch versions: `python -m benchmarks.speed.stable_abi`.

torch's stable interface (torch/csrc/stable, as of 2.13) reads a tensor by calls into torch, has no
way to a Python tensor but the dispatcher, and none at all to a gradient or a version count. So a
step would gather the gradients in Python, pass them through the dispatcher, and count versions in
Python; the engine reads a parameter's and its gradient's fields in place. Compiles for a minute.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd.graph import increment_version
from torch.utils.cpp_extension import load

CSRC = Path(__file__).resolve().parents[2] / "csrc"
ROUNDS, CALLS = 41, 50


def microseconds(call: Callable[[], object]) -> float:
    """Returns the time of one call, on the processor: others may be running on it."""
    begin = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - begin) / CALLS * 1e6


def compare(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the median of each, measured in turns."""
    rounds = [{name: microseconds(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(times[name] for times in rounds) for name in calls}


def main() -> int:
    """Prints the table."""
    ours = load(
        "lrfast_stable_abi",
        [str(Path(__file__).with_suffix(".cpp")), str(CSRC / "bindings" / "parameter.cpp")],
        extra_cflags=["-O3", "-std=c++20"],
        extra_include_paths=[str(CSRC)],
    )
    stable = torch.ops.lrfast_stable
    lines = ["| µs | torch's C++ interface | stable interface | ratio |", "|---|---|---|---|"]
    for count in (0, 6, 300):
        params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(count)]
        for param in params:
            param.grad = torch.ones(8, 8)
        if not params:
            what = "a call"
            calls = {"ours": ours.nothing, "stable": stable.nothing}
        else:
            what = f"looking at {count} parameters and gradients"
            ours.hold(params)
            stable.hold(params)

            def look(params: list[torch.nn.Parameter] = params) -> int:
                found = stable.look([param.grad for param in params])
                increment_version(params)
                return found

            assert ours.look() == look() == count
            calls = {"ours": ours.look, "stable": look}
        times = compare(calls)
        cells = [f"{times[name]:.2f}" for name in calls]
        lines.append(f"| {what} | {' | '.join(cells)} | {times['stable'] / times['ours']:.1f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
