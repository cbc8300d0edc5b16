"""Timing on machines that others use too: implementations are interleaved, medians are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

RUN, UNCOUNTED = 15, 5  # steps of a run, and how many of them come first and are not counted
TURNS, RUNS = (9, 301), (3, 41)  # fewest and most rounds of either way


@dataclass
class Work:
    """Something to time."""

    step: Callable[[], Any]
    prepare: Callable[[], None] | None = None  # before each step, outside its time
    every: int = 1  # round that it takes part in; more for slow ones that need no precision


Works = dict[str, Work]
Samples = dict[str, list[float]]


def in_turns(works: Works, seconds: float, sync: Callable[[], None] | None) -> Samples:
    """Seconds of each step, the works made step by step in turns."""
    return _rounds(works, 1, 0, (seconds, *TURNS), sync)


def in_runs(works: Works, seconds: float, sync: Callable[[], None] | None) -> Samples:
    """Seconds of each step, the works made in turns of runs, whose first steps do not count."""
    return _rounds(works, RUN, UNCOUNTED, (seconds, *RUNS), sync)


def quartiles_us(samples: Samples) -> dict[str, list[float]]:
    """Quartiles in microseconds."""
    return {
        name: [round(1e6 * quartile, 2) for quartile in statistics.quantiles(values, n=4)]
        for name, values in samples.items()
    }


def triads(num_bytes: int, device: str) -> Works:
    """STREAM's triad over as much memory as given, and the triad that writes what it read.

    An optimizer writes what it read too. A store elsewhere costs a read that STREAM does not count.
    """
    count = num_bytes // 12
    a, b, c = (torch.randn(count, device=device) for _ in range(3))
    return {
        "triad": Work(lambda: torch.add(b, c, alpha=0.5, out=a)),
        "triad in place": Work(lambda: torch.add(a, c, alpha=1e-3, out=a)),
    }


def _rounds(
    works: Works,
    steps: int,
    uncounted: int,
    limits: tuple[float, int, int],
    sync: Callable[[], None] | None,
) -> Samples:
    seconds, fewest, most = limits
    samples: Samples = {name: [] for name in works}
    start = time.perf_counter()
    for number in range(most):
        if number >= fewest and time.perf_counter() - start > seconds:
            break
        for name, work in works.items():
            if number % work.every == 0:
                samples[name] += [_time(work, sync) for _ in range(steps)][uncounted:]
    return samples


def _time(work: Work, sync: Callable[[], None] | None) -> float:
    if work.prepare is not None:
        work.prepare()
    if sync is not None:
        sync()
    start = time.perf_counter()
    work.step()
    if sync is not None:
        sync()
    return time.perf_counter() - start
