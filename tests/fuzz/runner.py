"""Runs cases in processes of their own, beside one that sees them crash, hang or grow."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from random import Random
from typing import Any

import torch

from .target import Target

HANG_S = 60.0  # one case, on a machine that does other things as well
ROOM = 2 * 2**30  # bytes that a process may grow by, address space that is only reserved included
KEPT = 20  # findings that are told in full


@dataclass
class Report:
    """What became of a target's cases."""

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0  # of all processes together
    findings: list[str] = field(default_factory=list)
    count: int = 0  # of the findings


def run(
    targets: Sequence[type[Target]], cases: int, processes: int, seed: int
) -> dict[str, Report]:
    """Run so many cases in all, shared among the targets as they ask for."""
    whole = sum(target.share for target in targets)
    reports = {}
    for target in targets:
        count = max(round(cases * target.share / whole), 1)
        bounds = [count * part // processes for part in range(processes + 1)]
        reports[target.name] = _run_target(target, bounds, seed)
    return reports


def run_one(target: type[Target], seed: int, index: int) -> bool:
    """Run one case in this process, as a finding names it."""
    with tempfile.TemporaryDirectory() as folder:
        return target(Path(folder) / "file").case(_random(target, seed, index))


def _random(target: type[Target], seed: int, index: int) -> Random:
    return Random(f"{seed} {target.name} {index}")


def _run_target(target: type[Target], bounds: list[int], seed: int) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        target(Path(folder) / "file")  # what fails here would fail in every process
        watched = [
            _Watched(target, seed, first, last, Path(folder) / str(place))
            for place, (first, last) in enumerate(pairwise(bounds))
        ]
        while any(each.watch(report) for each in watched):
            time.sleep(0.02)
    return report


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


class _Watched:
    """A process that runs the cases from first to last, begun anew behind one that ends it."""

    def __init__(
        self, target: type[Target], seed: int, first: int, last: int, folder: Path
    ) -> None:
        self._target, self._seed, self._last, self._folder = target, seed, last, folder
        folder.mkdir()
        self._notes = folder / "findings"
        self._places: Any = RawArray("q", 2)  # the case under way, and how many were accepted
        self._seen, self._since = -1, time.monotonic()
        self._pid = 0
        self._start(first)

    def watch(self, report: Report) -> bool:
        """Whether there is still something to watch."""
        if not self._pid:
            return False
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        place = self._places[0]
        if ended:
            self._pid = 0
            self._collect(report, place if status else self._last)
            if status != 0:
                self._lost(report, place, f"the process ended with status {status}")
            return bool(self._pid)
        if place != self._seen:
            self._seen, self._since = place, time.monotonic()
        elif time.monotonic() - self._since > HANG_S:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._collect(report, place)
            self._lost(report, place, f"no end within {HANG_S:.0f} s")
        return True

    def _lost(self, report: Report, place: int, what: str) -> None:
        report.cases += 1
        report.count += 1
        report.findings.append(f"{self._target.name}, case {place}: {what}")
        self._pid = 0
        if place + 1 < self._last and report.count < KEPT:
            self._start(place + 1)

    def _start(self, first: int) -> None:
        self._first, self._began = first, time.monotonic()
        self._places[0], self._places[1] = first, 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._work(first)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

    def _collect(self, report: Report, end: int) -> None:
        """Add what the process has done up to a case."""
        report.cases += end - self._first
        report.accepted += self._places[1]
        report.seconds += time.monotonic() - self._began
        if self._notes.exists():
            found = [json.loads(line) for line in self._notes.read_text().splitlines()]
            report.count += len(found)
            report.findings += found[:KEPT]
            self._notes.unlink()

    def _work(self, first: int) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        target = self._target(self._folder / "file")
        _limit_memory()
        for index in range(first, self._last):
            self._places[0] = index
            try:
                self._places[1] += target.case(_random(self._target, self._seed, index))
            except Exception as error:
                frames = traceback.format_tb(error.__traceback__)[-3:]
                text = "".join(frames) + f"{type(error).__name__}: {error!s:.500}"
                with self._notes.open("a") as file:
                    file.write(json.dumps(f"{self._target.name}, case {index}: {text}") + "\n")
                target = self._target(self._folder / "file")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
