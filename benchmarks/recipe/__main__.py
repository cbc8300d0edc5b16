"""Compares the recipe with baselines and its choices: `python -m benchmarks.recipe --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.recipe.measure import collect, fill
from benchmarks.recipe.report import PAGE, RESULTS, page, section


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("build/recipe"))
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} anew")
    chosen = parser.parse_args(arguments)
    if not chosen.page:
        torch.set_num_threads(1)
        for _ in tqdm(fill(chosen.store), unit="part"):
            pass
        found = collect(chosen.store)
        (chosen.store / "report.md").write_text(section(found))
        if chosen.keep:
            provenance.write(found, RESULTS)
    if chosen.page or chosen.keep:
        PAGE.write_text(page(PAGE.read_text(), provenance.newest(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
