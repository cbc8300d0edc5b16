"""Compares the range test within the warm-up with the separate one; `--help` has the options."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import provenance
from benchmarks.research.in_warmup.measure import collect, fill
from benchmarks.research.in_warmup.report import PAGE, RESULTS, page


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.in_warmup", description=__doc__
    )
    parser.add_argument("--store", type=Path, default=Path("build/in_warmup"))
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long, to go on")
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} anew")
    chosen = parser.parse_args()
    if not chosen.page:
        torch.set_num_threads(1)
        until = time.monotonic() + chosen.seconds
        for _ in fill(chosen.store):
            if time.monotonic() > until:
                return 1
        if chosen.keep:
            provenance.write(collect(chosen.store), RESULTS)
    if chosen.page or chosen.keep:
        PAGE.write_text(page(provenance.newest(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
