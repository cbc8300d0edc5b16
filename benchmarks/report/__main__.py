"""`python -m benchmarks.report` renders docs/benchmarks.md and the blocks of other pages.

`python -m benchmarks.report --add build/bench.json` first keeps what `make bench` measured as files
in benchmarks/results/. All figures come from those files only, and the rows that lrfast loses stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import provenance
from benchmarks.report import page, readme, results, small_states


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="pytest-benchmark's JSON of a run to keep")
    arguments = parser.parse_args()
    if arguments.add:
        results.add(arguments.add)
    found = results.load()
    page.PAGE.write_text(page.render(found))
    texts = readme.blocks(found, readme.suggestions_result())
    pages = {
        readme.README: texts,
        readme.LORA: readme.lora_blocks(found),
        small_states.PAGE: small_states.blocks(found),
    }
    for path, blocks in pages.items():
        path.write_text(provenance.with_blocks(path.read_text(), blocks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
