"""`python -m benchmarks.report` renders docs/benchmarks.md and a block of the README.

`python -m benchmarks.report --add build/bench.json` first keeps what `make bench` measured as files
in benchmarks/results/. All figures come from those files only, and the rows that lrfast loses stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report import page, results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="pytest-benchmark's JSON of a run to keep")
    arguments = parser.parse_args()
    if arguments.add:
        results.add(arguments.add)
    found = results.load()
    page.PAGE.write_text(page.render(found))
    block = page.readme_block(found)
    page.README.write_text(page.with_block(page.README.read_text(), block))
    return 0


if __name__ == "__main__":
    sys.exit(main())
