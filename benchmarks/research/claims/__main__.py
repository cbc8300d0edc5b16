"""Tries the claims and reports on them: `python -m benchmarks.research.claims --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import provenance
from benchmarks.research.claims.experiments import EXPERIMENTS
from benchmarks.research.claims.measure import QUICK, Plan, measure_named
from benchmarks.research.claims.report import PAGE, RESULTS, markdown


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.claims", description=__doc__
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--store", type=Path, default=Path("build/claims"))
    parser.add_argument(
        "--seeds",
        type=int,
        nargs=2,
        default=(len(Plan().choosing), len(Plan().judging)),
        metavar=("CHOOSING", "JUDGING"),
        help="how many; those that are measured already are kept",
    )
    parser.add_argument("--quick", action="store_true", help="a few steps each, as a check")
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} anew")
    chosen = parser.parse_args(arguments)
    if chosen.page:
        PAGE.write_text(markdown(provenance.newest(RESULTS)))
        return 0
    plan = QUICK if chosen.quick else Plan.of(*chosen.seeds)
    found = collect(chosen.store, plan, chosen.workers)
    (chosen.store / "report.md").write_text(markdown(found))
    if chosen.keep:
        provenance.write(found, RESULTS)
        PAGE.write_text(markdown(found))
    return 0


def collect(folder: Path, plan: Plan, workers: int) -> dict[str, Any]:
    """Measures what the store lacks, task by task, and returns what a result file holds."""
    jobs = [(each.name, task.name) for each in EXPERIMENTS for task in each.tasks]
    tasks: dict[str, Any] = {each.name: {} for each in EXPERIMENTS}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting = [pool.apply_async(measure_named, (*job, folder, plan)) for job in jobs]
        for (experiment, task), each in tqdm(
            zip(jobs, waiting, strict=True), total=len(jobs), unit="task"
        ):
            tasks[experiment][task] = each.get()
    seeds = {"choosing": list(plan.choosing), "judging": list(plan.judging)}
    return provenance.facts() | {"seeds": seeds, "experiments": tasks}


if __name__ == "__main__":
    sys.exit(main())
