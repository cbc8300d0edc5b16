"""`python -m benchmarks.report` renders docs/benchmarks.md and the blocks of the README.

`python -m benchmarks.report --add build/bench.json` first keeps what `make bench` measured as files
in benchmarks/results/. All figures come from those files only, and the rows that lrfast loses stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import provenance
from benchmarks.report import page, readme, results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="pytest-benchmark's JSON of a run to keep")
    arguments = parser.parse_args()
    if arguments.add:
        results.add(arguments.add)
    found = results.load()
    page.PAGE.write_text(page.render(found))
    texts = readme.blocks(found, readme.suggestions_result())
    readme.README.write_text(provenance.with_blocks(readme.README.read_text(), texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
