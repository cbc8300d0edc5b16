"""Fills the store and reports on it: `python -m benchmarks.research.suggestions --help`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks import provenance
from benchmarks.research.suggestions import why
from benchmarks.research.suggestions.measure import ALL, JUDGED, MEASURED, PEERS, measure
from benchmarks.research.suggestions.plot import plot
from benchmarks.research.suggestions.report import (
    PAGE,
    RESULTS,
    markdown,
    newest,
    page,
    summarise,
)
from benchmarks.research.suggestions.store import Store

ALL_PARTS = (*MEASURED, *JUDGED, "report")
PARTS = tuple(part for part in ALL_PARTS if part not in PEERS)


def main() -> int:
    """Does what the command line says."""
    names = list(ALL)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.suggestions", description=__doc__
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--only", choices=ALL_PARTS, help=f"one part; default: {PARTS}")
    parser.add_argument("--store", type=Path, default=Path("build/suggestions"))
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument(
        "--page", action="store_true", help=f"only write {PAGE.name} and {why.PAGE.name}"
    )
    arguments = parser.parse_args()
    if arguments.page:
        result = newest(RESULTS)
        PAGE.write_text(page(PAGE.read_text(), result))
        why.PAGE.write_text(why.page(why.PAGE.read_text(), result))
        return 0
    parts = (arguments.only,) if arguments.only else PARTS
    job = partial(measure, folder=arguments.store, parts=parts)
    if parts != ("report",):
        with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
            finished = pool.imap_unordered(job, arguments.tasks)
            for _ in tqdm(finished, total=len(arguments.tasks), unit="task"):
                pass
    if "report" in parts:
        report(arguments.store, keep=arguments.keep)
    return 0


def report(folder: Path, *, keep: bool) -> None:
    """Writes report.md and report.png next to the measurements, and a result file if wanted."""
    result = summarise(Store(folder), newest(RESULTS))
    if not result["tasks"]:
        raise SystemExit(f"no task is complete in {folder}: run without --only first")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(result))
    plot(result, folder / "report.png")
    if keep:
        provenance.write(result, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
