"""Compares trainings with states in 8 bits and in float32; `--help` has the options.

`--only bfloat16` and `--only float16` compare weights of that dtype with master bits and without,
in a result file of their own.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from benchmarks import provenance
from benchmarks.research.small_states import language, masters, tasks
from benchmarks.research.small_states.report import MASTERS, PAGE, RESULTS, collect, page
from benchmarks.research.suggestions.measure import ALL
from benchmarks.research.suggestions.store import Store


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.small_states", description=__doc__
    )
    parser.add_argument(
        "--only", choices=("tasks", "language", *masters.HALVES, "report"), help="one part"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(ALL), default=list(ALL), metavar="NAME")
    parser.add_argument("--store", type=Path, default=Path("build/small_states"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="the longest for masters")
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE.name}")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.page and chosen.only in (None, "tasks"):
        for name in chosen.tasks:
            tasks.fill(ALL[name], Store(chosen.store / "tasks", tasks.fingerprint))
    if not chosen.page and chosen.only in (None, "language"):
        language.fill(Store(chosen.store / "language", language.fingerprint))
    if (half := chosen.only) in masters.HALVES:
        store = Store(chosen.store / f"{half}_masters", masters.fingerprint)
        names = [n for n in masters.coded(provenance.newest(RESULTS)) if n in chosen.tasks]
        if not chosen.page:
            masters.fill(names, store, half, chosen.seconds)
        if chosen.keep:
            provenance.write(masters.collect(names, store, half), MASTERS[half])
    elif chosen.keep:
        provenance.write(collect(chosen.store), RESULTS)
    if chosen.keep or chosen.page:
        wider = {half: provenance.newest(folder) for half, folder in MASTERS.items()}
        PAGE.write_text(page(PAGE.read_text(), provenance.newest(RESULTS), wider))
    return 0


if __name__ == "__main__":
    sys.exit(main())
