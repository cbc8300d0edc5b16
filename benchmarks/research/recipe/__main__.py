"""Compares the recipe with baselines and its choices; `--help` has the options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.research.recipe.measure import PARTS, collect, fill
from benchmarks.research.recipe.report import PAGE, RESULTS, page, section


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.recipe", description=__doc__
    )
    parser.add_argument("--store", type=Path, default=Path("build/recipe"))
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        help="what to measure; the others are taken from the newest result file",
    )
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} anew")
    chosen = parser.parse_args(arguments)
    if not chosen.page:
        torch.set_num_threads(1)
        for _ in tqdm(fill(chosen.store, chosen.parts), unit="part"):
            pass
        found = collect(chosen.store, chosen.parts)
        found["parts"] = provenance.newest(RESULTS)["parts"] | found["parts"]
        (chosen.store / "report.md").write_text(section(found))
        if chosen.keep:
            provenance.write(found, RESULTS)
    if chosen.page or chosen.keep:
        PAGE.write_text(page(PAGE.read_text(), provenance.newest(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
