"""Timing on machines that others use too: implementations are interleaved, medians are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

RUN, UNCOUNTED = 15, 5  # steps of a run, and how many of them come first and are not counted
# Fewest and most rounds of either way, and fewest where they take PATIENCE times as long as asked.
LIMITS = {"turns": (9, 301), "runs": (3, 41)}
FEWEST, PATIENCE = 5, 10
FLUSHED = 256 << 20  # bytes written to clear the caches, several times the largest of them


@dataclass
class Work:
    """Something to time."""

    step: Callable[[], Any]
    prepare: Callable[[], None] | None = None  # before each step, outside its time
    every: int = 1  # round that it takes part in; more for slow ones that need no precision


Works = dict[str, Work]


@dataclass
class Samples:
    """Seconds of each step of one work."""

    device: list[float]  # until it is done
    host: list[float]  # until its call returns, which on a CPU is the same

    def quartiles_us(self, which: str = "device") -> list[float]:
        """Quartiles in microseconds."""
        values = getattr(self, which)
        return [round(1e6 * quartile, 2) for quartile in statistics.quantiles(values, n=4)]


class Clock:
    """Times calls on one device: on a GPU between two events, on a CPU by the clock.

    With ``clear`` the caches hold nothing of use when a call begins.
    """

    def __init__(self, device: str, clear: bool = False) -> None:
        self.is_gpu = device == "cuda"
        self._flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=device) if clear else None

    def time(self, work: Work) -> tuple[float, float]:
        """Returns the seconds until the step is done, and until its call returned."""
        if work.prepare is not None:
            work.prepare()
        if self._flushed is not None:
            self._flushed.zero_()
        if not self.is_gpu:
            start = time.perf_counter()
            work.step()
            seconds = time.perf_counter() - start
            return seconds, seconds
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        start = time.perf_counter()
        work.step()
        host = time.perf_counter() - start
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3, host


def interleaved(works: Works, way: str, seconds: float, clock: Clock) -> dict[str, Samples]:
    """Times works in turns, step by step or in "runs", whose first steps do not count."""
    steps, uncounted = (RUN, UNCOUNTED) if way == "runs" else (1, 0)
    fewest, most = LIMITS[way]
    found = {name: Samples([], []) for name in works}
    start = time.perf_counter()
    for number in range(most):
        spent = time.perf_counter() - start
        enough = min(fewest, FEWEST) if spent > PATIENCE * seconds else fewest
        if number >= enough and spent > seconds:
            break
        for name, work in works.items():
            if number % work.every:
                continue
            for device, host in [clock.time(work) for _ in range(steps)][uncounted:]:
                found[name].device.append(device)
                found[name].host.append(host)
    return found


# What a roof moves: accesses per element, 4 bytes each.
ROOFS = {"copy": 2, "triad": 3, "triad in place": 3}


def roofs(num_bytes: int, device: str) -> tuple[Works, dict[str, int]]:
    """Plain passes over as much memory as given, and the bytes that each of them moves.

    STREAM's copy and triad, and the triad that writes what it has read, as an optimizer does: a
    store elsewhere costs a read that STREAM does not count.
    """
    count = num_bytes // 12
    a, b, c = (torch.randn(count, device=device) for _ in range(3))
    works = {
        "copy": Work(lambda: a.copy_(b)),
        "triad": Work(lambda: torch.add(b, c, alpha=0.5, out=a)),
        "triad in place": Work(lambda: torch.add(a, c, alpha=1e-3, out=a)),
    }
    return works, {name: 4 * accesses * count for name, accesses in ROOFS.items()}
