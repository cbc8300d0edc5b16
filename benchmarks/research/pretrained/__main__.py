"""Measures what the store lacks; `--help` has the options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import provenance
from benchmarks.research.pretrained.report import PAGE, RESULTS, collect, page
from benchmarks.research.pretrained.tasks import TASKS
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import fill_grid, fill_size, fill_sweeps


def main() -> int:
    """Does what the command line says."""
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.pretrained", description=__doc__
    )
    parser.add_argument("--tasks", nargs="*", choices=names, default=names, metavar="NAME")
    parser.add_argument("--store", type=Path, default=Path("build/pretrained"))
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE.name} anew")
    chosen = parser.parse_args()
    store = Store(chosen.store)
    torch.set_num_threads(1)
    for task in () if chosen.page else TASKS:
        if task.name in chosen.tasks:
            for fill in (fill_size, fill_sweeps, fill_grid):
                fill(task, store)
    if chosen.keep:
        kept = provenance.newest(RESULTS)["tasks"] if any(RESULTS.glob("*.json")) else {}
        provenance.write(collect(store, kept), RESULTS)
    if chosen.page or chosen.keep:
        PAGE.write_text(page(provenance.newest(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
