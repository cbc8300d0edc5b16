"""The command: python -m tests.fuzz --cases 1000000."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .runner import Report, run, run_one
from .target import Target
from .targets_plain import EngineTables, Histories, RangeTests, Retests, Schedules
from .targets_state import Checkpoints, LossSchedules, Optimizers, Sharded, WarmupSearches

TARGETS: tuple[type[Target], ...] = (
    *(Schedules, EngineTables, RangeTests, Histories, Retests),
    *(Optimizers, LossSchedules, Checkpoints, Sharded, WarmupSearches),
)


def main() -> int:
    """Run what the arguments ask for, and return 1 if anything was found."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=names, action="append", help="these targets alone")
    parser.add_argument("--case", type=int, help="this case of the target, in this process")
    given = parser.parse_args()
    targets = [target for target in TARGETS if given.only is None or target.name in given.only]
    if given.case is not None:
        _say("accepted" if run_one(targets[0], given.seed, given.case) else "refused")
        return 0
    began = time.perf_counter()
    reports = run(targets, given.cases, given.processes, given.seed)
    return _tell(reports, time.perf_counter() - began, given.seed)


def _tell(reports: dict[str, Report], seconds: float, seed: int) -> int:
    _say(f"{'target':14} {'cases':>9} {'accepted':>9} {'findings':>8} {'cases/s':>8}")
    for name, report in reports.items():
        rate = report.cases / max(report.seconds, 1e-9)
        _say(f"{name:14} {report.cases:9} {report.accepted:9} {report.count:8} {rate:8.0f}")
    cases = sum(report.cases for report in reports.values())
    count = sum(report.count for report in reports.values())
    _say(f"{cases} cases in {seconds:.0f} s, seed {seed}: {count} findings")
    for report in reports.values():
        for finding in report.findings:
            _say(f"\n{finding}")
    if count:
        _say("\nOne case again: python -m tests.fuzz --seed SEED --only TARGET --case NUMBER")
    return 1 if count else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
