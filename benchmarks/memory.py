"""Peak resident memory of optimizer steps, as Linux counts it: `python -m benchmarks.memory`.

Each combination of parameters, optimizer and states takes two steps in a process of its own. What
its peak exceeds that of plain SGD by, which has no states, are the states and all that a step needs
for a moment; what it exceeds that of gradients alone by are the parameters, too. `--keep` writes a
result file; `python -m benchmarks.report` makes the tables of docs/states_in_8_bits.md of it. Runs
for some minutes.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import lrfast
from benchmarks import provenance
from benchmarks.speed import model_sets

RESULTS = provenance.RESULTS / "memory"
WIDTHS = ("float32", "bfloat16")
MODELS = ("vit_small", "hundred_million")
STEPS, RUNS = 2, 1


def _lrfast(rule: str, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: getattr(lrfast, rule)(params, lr=1e-3, **options)


# By optimizer and states. SGD has no state, and is what the others are compared with.
PLAIN = "SGD"
GRADIENTS = "gradients alone"  # SGD again, of one weight, beside gradients that nothing reads
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    PLAIN: _lrfast("SGD"),
    "torch.optim.AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "AdamW, float32": _lrfast("AdamW", state_dtype=torch.float32),
    "AdamW, bfloat16": _lrfast("AdamW", state_dtype=torch.bfloat16),
    "AdamW, 8bit": _lrfast("AdamW", state_dtype="8bit"),
    "Lion, 8bit": _lrfast("Lion", state_dtype="8bit"),
}
MASTERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {  # of bfloat16 parameters
    "AdamW, float32, 32bit master": _lrfast("AdamW", state_dtype=torch.float32, master="32bit"),
    "AdamW, 8bit, 32bit master": _lrfast("AdamW", state_dtype="8bit", master="32bit"),
    "AdamW, 8bit, 24bit master": _lrfast("AdamW", state_dtype="8bit", master="24bit"),
}


def peak() -> int:
    """Returns the most bytes that this process has had in memory at once.

    `ru_maxrss` counts what the parent had before this program began, too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(found)


def run(name: str, model: str, width: str) -> int:
    """Makes parameters and gradients, takes steps, and returns the process's peak."""
    torch.set_num_threads(1)
    dtype = getattr(torch, width)
    shapes = [shape for layer in getattr(model_sets, model)() for shape in layer]
    grads = [torch.empty(shape, dtype=dtype).fill_(0.25) for shape in shapes]
    stepped = grads if name != GRADIENTS else [torch.ones(1, dtype=dtype)]
    params = [torch.nn.Parameter(torch.empty_like(grad).fill_(0.5)) for grad in stepped]
    for param, grad in zip(params, stepped, strict=True):
        param.grad = grad
    optimizer = (OPTIMIZERS | MASTERS).get(name, OPTIMIZERS[PLAIN])(params)
    for _ in range(STEPS):
        optimizer.step()
    return peak()


def peak_of(name: str, model: str, width: str) -> int:
    """Returns the peak of `run` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--run", name, model, width]
    done = subprocess.run(command, cwd=provenance.ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def states_of(names: Iterable[str], model: str, width: str, runs: int = 1) -> dict[str, float]:
    """Returns the measured bytes of state for each parameter, by the least peaks of some runs."""
    return _above(PLAIN, least_peaks((PLAIN, *names), model, width, runs), model)


def least_peaks(names: Iterable[str], model: str, width: str, runs: int) -> dict[str, int]:
    """Returns the least peak of some runs of each."""
    return {name: min(peak_of(name, model, width) for _ in range(runs)) for name in names}


def _above(base: str, peaks: dict[str, int], model: str) -> dict[str, float]:
    """Returns the bytes for each parameter by which the optimizers' peaks exceed another."""
    return {
        name: round((found - peaks[base]) / elements(model), 3)
        for name, found in peaks.items()
        if name not in (PLAIN, GRADIENTS)
    }


def elements(model: str) -> int:
    """Returns the number of a model's parameters."""
    layers: model_sets.Layers = getattr(model_sets, model)()
    return sum(math.prod(shape) for layer in layers for shape in layer)


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    arguments = parser.parse_args()
    if arguments.run:
        sys.stdout.write(f"{run(*arguments.run)}\n")
        return 0
    states: dict[str, dict[str, dict[str, float]]] = {model: {} for model in MODELS}
    together: dict[str, dict[str, dict[str, float]]] = {model: {} for model in MODELS}
    for model in MODELS:
        for width in WIDTHS:
            masters = MASTERS if width == "bfloat16" else {}
            names = (GRADIENTS, *OPTIMIZERS, *masters)
            peaks = least_peaks(names, model, width, RUNS)
            states[model][width] = _above(PLAIN, peaks, model)
            together[model][width] = _above(GRADIENTS, peaks, model)
            sys.stdout.write(f"{model} {width} {states[model][width]} {together[model][width]}\n")
            sys.stdout.flush()
    facts = {**provenance.facts(), "runs": RUNS}
    result = facts | {"bytes_per_parameter": states, "with_parameters": together}
    if arguments.keep:
        provenance.write(result, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
