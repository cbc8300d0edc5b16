"""Facts of a measurement, its result file, and tables of Markdown: shared by all benchmarks."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def facts() -> dict[str, Any]:
    """Returns what every result file begins with."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": f"{platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def tree(folder: str) -> str:
    """Returns git's name for the committed content of a folder."""
    return _git("rev-parse", f"HEAD:{folder}")


def sentence(result: dict[str, Any]) -> str:
    """Returns those facts of a result file as a sentence."""
    return (
        f"{result['machine']}; torch {result['torch']}, Python {result['python']}; "
        f"{commit_of(result)}; {result['date']}."
    )


def commit_of(result: dict[str, Any]) -> str:
    """Returns the commit of a result file, and whether the sources differed from it."""
    dirty = ", with uncommitted changes" if result["dirty"] else ""
    return f"commit {result['commit'][:10]}{dirty}"


def write(result: dict[str, Any], folder: Path) -> Path:
    """Writes a result file, one per day and commit."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['date']}-{result['commit'][:10]}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def newest(folder: Path) -> dict[str, Any]:
    """Returns the result that was measured last, by the date in the names of the files."""
    found: dict[str, Any] = json.loads(max(folder.glob("*.json")).read_text())
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """Returns the lines of a table whose first columns are texts, and the others figures."""
    rule = "|" + "---|" * texts + "---:|" * (len(header) - texts)
    first, *others = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return [first, rule, *others]


def with_blocks(page: str, texts: Mapping[str, str]) -> str:
    """Returns a page with each block in the place of the one between its markers."""
    for name, text in texts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page must hold {begin} and {end}, got neither or one of them")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name as Linux has it; platform knows it elsewhere only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
